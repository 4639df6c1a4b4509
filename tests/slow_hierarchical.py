"""The hierarchical RNN rule once more, one number at a time."""

import itertools
import math

from learned_optim.invariance import FIRST, ORTHOGONAL, REMEMBERED
from learned_optim.rules.hierarchical import FIXED_DECAYS, LONG, PARTS


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def dot(row, values):
    return sum(w * z for w, z in zip(row, values, strict=True))


def mean(values):
    return sum(values) / len(values)


def root_mean_square(values):
    return math.sqrt(mean([value * value for value in values]))


def slow_gru(weight, bias, x, h):
    size = len(h)
    r, u = (
        [sigmoid(dot(weight[part * size + j], [*x, *h]) + bias[part * size + j]) for j in range(size)]
        for part in (0, 1)
    )
    reset = [*x, *[a * b for a, b in zip(r, h, strict=True)]]
    c = [math.tanh(dot(weight[2 * size + j], reset) + bias[2 * size + j]) for j in range(size)]
    return [u[j] * h[j] + (1 - u[j]) * c[j] for j in range(size)]


class Slow:
    """A transcription of the paper and of the released code with plain lists."""

    def __init__(self, rule, state):
        self.rule, self.parts = rule, set(PARTS) - set(rule.without)
        self.weights = {name: weight.tolist() for name, weight in rule.named_parameters()}
        self.tensors = {}
        for name, own in state.per_param.items():
            cells = own["hidden"][..., 0].numel()
            rates = own["log_rate"].flatten().tolist() if "log_rate" in own else [0.0] * cells
            coordinates = [
                {
                    "h": self.first(0),
                    "m": [0.0] * rule.time_scales,
                    "v": [0.0] * rule.time_scales,
                    "long": [0.0] * rule.time_scales,
                    "l": rate,
                    "ahead": 0.0,
                    "steps": 0,
                }
                for rate in rates
            ]
            self.tensors[name] = {"coordinates": coordinates, "T": self.first(1), "steps": 0, "aligned": 0.0}
        self.N = self.first(2)

    def first(self, level):
        if level >= len(self.rule.sizes):
            return None
        return self.weights[f"firsts.{level}"] if "learned_start" in self.parts else [0.0] * self.rule.sizes[level]

    def bias(self, level, above):
        bias = self.weights[f"biases.{level}"]
        for high, state in above.items():
            if state is not None:
                bias = [
                    b + dot(row, state) for b, row in zip(bias, self.weights[f"maps.{high}_to_{level}"], strict=True)
                ]
        return bias

    def decays(self, c):
        if not c["steps"]:
            return 0.0, 0.0
        if "learned_decays" not in self.parts:
            d, s = FIXED_DECAYS
        else:
            rows = zip(self.weights["decays.weight"], self.weights["decays.bias"], strict=True)
            *d, s = [sigmoid(dot(row, c["h"]) + b) for row, b in rows]
            d = d[0] if d else 0.0
        return (d if self.rule.time_scales > 1 else 0.0), s

    def inputs(self, c, g, centre):
        d, s = self.decays(c)
        for k in range(self.rule.time_scales):
            c["m"][k] = d * c["m"][k] + (1 - d) * g
            c["v"][k] = s * c["v"][k] + (1 - s) * c["m"][k] ** 2
            c["long"][k] = LONG * c["long"][k] + (1 - LONG) * c["m"][k] ** 2
            d = math.sqrt(d)
        scaled = [
            math.asinh((m / (math.sqrt(v) + 1e-8) if v > 0 else 0.0) if "input_scaling" in self.parts else m)
            for m, v in zip(c["m"], c["v"], strict=True)
        ]
        x = list(scaled)
        if "products" in self.parts:
            x += [a * b for a, b in itertools.pairwise(scaled)]
        if "log_squares" in self.parts and self.rule.time_scales > 1:
            logs = [math.log(v) if v > 0 else 0.0 for v in c["v"]]
            x += [log - mean(logs) if v > 0 else 0.0 for log, v in zip(logs, c["v"], strict=True)]
        if {"relative_rates", "dynamic_rates"} <= self.parts:
            x.append(c["l"] - centre)
        return x, scaled

    def within(self, name, horizon):
        return 1.0 if horizon is None else min(1.0, horizon / self.tensors[name]["steps"])

    def invariant(self, name, grads, values):
        """Whether gradients have been orthogonal to the tensor; all of its moving coordinates."""
        tensor = self.tensors[name]
        if any(grads):
            product = sum(g * value for g, value in zip(grads, values, strict=True))
            lengths = sum(g * g for g in grads) * sum(value * value for value in values)
            now = min(len(values) * product**2 / lengths, 1.0) if lengths else 1.0
            tensor["aligned"] = max(now, REMEMBERED * tensor["aligned"])
        return tensor["aligned"] < ORTHOGONAL and tensor["steps"] >= FIRST and any(grads)

    def lasting(self, name, c, row):
        """The shortcut from averages over their long squares."""
        unbiased = 1 - LONG ** self.tensors[name]["steps"]
        scaled = [
            m / (math.sqrt(v / unbiased) + 1e-8) if v > 0 else 0.0 for m, v in zip(c["m"], c["long"], strict=True)
        ]
        return dot(self.weights["shortcuts"][row], [math.asinh(each) for each in scaled])

    def step(self, grads, params):
        rule, weights = self.rule, self.weights
        for name in grads:
            self.tensors[name]["steps"] += 1
        moving = {
            name: [
                (c, g)
                for c, g in zip(self.tensors[name]["coordinates"], own.flatten().tolist(), strict=True)
                if rule.move_unseen or c["steps"] or g != 0
            ]
            for name, own in grads.items()
        }
        moving = {name: pairs for name, pairs in moving.items() if pairs}
        updates = {name: [0.0] * own.numel() for name, own in grads.items()}
        if not moving:
            return updates
        centre = mean([c["l"] for pairs in moving.values() for c, _ in pairs])
        new_tensors, kept, steady = {}, {}, {}
        for name, pairs in moving.items():
            told, directions, looks = [], [], []
            for c, g in pairs:
                x, scaled = self.inputs(c, g, centre)
                bias = self.bias(0, {1: self.tensors[name]["T"], 2: self.N})
                c["h"] = slow_gru(weights["weights.0"], bias, x, c["h"])
                c["steps"] += 1
                told.append([*c["h"], *x])
                for row, results in enumerate((directions, looks)[: 1 + rule.attention]):
                    delta = dot(weights["directions"][row], c["h"])
                    results.append(
                        delta + (dot(weights["shortcuts"][row], scaled) if "shortcut" in self.parts else 0.0)
                    )
            if self.tensors[name]["T"] is not None:
                bias = self.bias(1, {2: self.N})
                below = [mean(column) for column in zip(*told, strict=True)]
                new_tensors[name] = slow_gru(weights["weights.1"], bias, below, self.tensors[name]["T"])
            places = [i for i, c in enumerate(self.tensors[name]["coordinates"]) if any(c is each for each, _ in pairs)]
            kept[name] = places, directions, looks
        for name, (places, _, _) in kept.items():
            if rule.invariant_steps is not None:
                steady[name] = self.invariant(
                    name, *(every[name].flatten()[places].tolist() for every in (grads, params))
                )
        for name, pairs in moving.items():
            places, directions, looks = kept[name]
            if any(steady.values()):
                directions, *looks = (
                    [self.lasting(name, c, row) for c, _ in pairs] for row in range(1 + rule.attention)
                )
                looks = looks[0] if looks else []
            for k, (i, (c, _)) in enumerate(zip(places, pairs, strict=True)):
                step, look = directions[k], (looks or [0.0] * len(pairs))[k]
                if "dynamic_rates" in self.parts:
                    change = dot(weights["rate.weight"][0], c["h"]) + weights["rate.bias"][0]
                    later = rule.invariant_horizon if any(steady.values()) and rule.invariant_horizon else rule.horizon
                    aim = c["l"] + self.within(name, later) * change
                    aim = min(max(aim, -33.0), 33.0)
                    memory = sigmoid(weights["rate_memory"])
                    c["l"] = memory * c["l"] + (1 - memory) * aim
                    rates = [math.exp(aim + weights["rate_offset"]), math.exp(aim)]
                    if steady.get(name):
                        share, horizon = rule.invariant_steps
                        values = params[name].flatten()[places].tolist()
                        rates = [share * self.within(name, horizon) * root_mean_square(values)] * 2
                    step *= rates[0] / (root_mean_square(directions) + 1e-8)
                    look *= rates[1] / (root_mean_square(looks) + 1e-8) if looks else 0.0
                updates[name][i] = -look - c["ahead"] if rule.attention else -step
                c["ahead"] = step - look
        for name, new in new_tensors.items():
            self.tensors[name]["T"] = new
        if self.N is not None:
            self.N = slow_gru(
                weights["weights.2"],
                weights["biases.2"],
                [mean(c) for c in zip(*new_tensors.values(), strict=True)],
                self.N,
            )
        return updates
