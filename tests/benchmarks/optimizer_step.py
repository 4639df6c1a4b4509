"""The LSTM optimizer's own step, beside the least work that it cannot do without."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from learned_optim import HierarchicalRNNOptimizer, HierarchicalRNNRule, LSTMOptimizer, LSTMRule
from learned_optim.features import log_and_sign
from tests.benchmarks.measuring import Bar, Benchmark, Contender, Group, Setup, ratio

EAGER, COMPILED, MANY, FLOOR = "ours", "ours, compiled", "ours, {:,} tensors", "floor: products, sigmoids, tanhs"
WHOLE = "ours, torch.compile(optimizer.step)"
HIERARCHICAL, BUNDLED = "ours, hierarchical", "ours, hierarchical as bundled"
CHUNKS = (512, 1024, 2048, 4096, 8192, 16384)
"""Coordinates at a time, of which the floor takes the fastest."""


def rule(device: str = "cpu") -> LSTMRule:
    """As in the paper: log/sign inputs, two layers of 20 units."""
    torch.manual_seed(0)
    return LSTMRule().to(device)


def parameters(coordinates: int, tensors: int = 1, *, device: str = "cpu") -> list[nn.Parameter]:
    """Parameters with gradients; the same numbers for any number of tensors."""
    generator = torch.Generator().manual_seed(1)
    values, grads = (torch.randn(coordinates, generator=generator).to(device).chunk(tensors) for _ in range(2))
    params = [nn.Parameter(value.clone()) for value in values]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad.clone()
    return params


# Contenders; the result of those that are this LSTM is the hidden state of its second layer


def step(
    make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], params: list[nn.Parameter], *, compiled: bool = False
) -> Callable[[], Any]:
    """``optimizer.step()``, or the same under ``torch.compile``."""
    optimizer = make(params)
    if compiled:
        torch._dynamo.reset()  # of one function only so many versions are compiled
    function = torch.compile(optimizer.step) if compiled else optimizer.step

    def call() -> list[Tensor] | None:
        function()
        entries = [optimizer.state[p] for p in params]
        return [entry["hidden_1"] for entry in entries] if "hidden_1" in entries[0] else None

    return call


def lstm(params: list[nn.Parameter], *, device: str = "cpu", compile: bool = False) -> LSTMOptimizer:
    """The optimizer with the paper's rule."""
    return LSTMOptimizer(params, rule=rule(device), compile=compile)


def hierarchical(params: list[nn.Parameter], *, device: str = "cpu") -> HierarchicalRNNOptimizer:
    """The optimizer with the default rule."""
    torch.manual_seed(0)
    return HierarchicalRNNOptimizer(params, rule=HierarchicalRNNRule().to(device))


def bundled(params: list[nn.Parameter]) -> HierarchicalRNNOptimizer:
    """The optimizer as it comes, with its invariant steps and its guard."""
    return HierarchicalRNNOptimizer(params)


def floor(coordinates: int, *, device: str = "cpu") -> Callable[[], None]:
    """Both layers' matrix products into one chunk of memory, and as many sigmoids and tanhs as the cells have.

    No state is read or written, no gate is applied and no feature computed: no LSTM of this size can be faster by
    another arrangement of its parts.
    """
    weights = [w.detach().t().contiguous() for w in rule(device).weights]  # (F + H, 4 H) each
    units = weights[0].shape[1] // 4

    def passes(chunk: int) -> Callable[[], None]:
        # Chunks of the same size, the last one a little less.
        sizes = [chunk] * (coordinates // chunk) + [coordinates % chunk] * (coordinates % chunk > 0)
        inputs = [torch.rand(chunk, w.shape[0], device=device) for w in weights]
        gates, cell = torch.empty(chunk, 4 * units, device=device), torch.rand(chunk, units, device=device)

        def call() -> None:
            for size in sizes:
                for x, weight in zip(inputs, weights, strict=True):
                    torch.mm(x[:size], weight, out=gates[:size])
                    torch.sigmoid_(gates[:size])
                    torch.tanh_(cell[:size])

        return call

    def seconds(call: Callable[[], None]) -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    candidates = [passes(chunk) for chunk in CHUNKS]
    best = [min(seconds(call) for _ in range(3)) for call in candidates]
    return candidates[best.index(min(best))]


def cells(coordinates: int, *, device: str = "cpu", fused: bool) -> Callable[[], list[Tensor]]:
    """torch's own LSTM with the rule's weights, on the same features: two ``nn.LSTMCell``, or ``nn.LSTM``."""
    own = rule(device)
    (param,) = parameters(coordinates, device=device)
    features = torch.stack(log_and_sign(param.grad), dim=-1)  # (n, 2)
    sizes = [features.shape[1], own.hidden_size]
    lstm = nn.LSTM(sizes[0], own.hidden_size, own.num_layers).to(device)
    layers = [nn.LSTMCell(size, own.hidden_size).to(device) for size in sizes]
    states = [[torch.zeros(coordinates, own.hidden_size, device=device) for _ in range(2)] for _ in sizes]
    with torch.no_grad():
        for i, (weight, bias, layer) in enumerate(zip(own.weights, own.biases, layers, strict=True)):
            for module, suffix in ((layer, ""), (lstm, f"_l{i}")):
                getattr(module, f"weight_ih{suffix}").copy_(weight[:, : sizes[i]])
                getattr(module, f"weight_hh{suffix}").copy_(weight[:, sizes[i] :])
                getattr(module, f"bias_ih{suffix}").copy_(bias)
                getattr(module, f"bias_hh{suffix}").zero_()
    joint = [torch.stack(parts) for parts in zip(*states, strict=True)]

    @torch.no_grad()
    def call_cells() -> list[Tensor]:
        x = features
        for i, layer in enumerate(layers):
            states[i] = list(layer(x, tuple(states[i])))
            x = states[i][0]
        return [x]

    @torch.no_grad()
    def call_lstm() -> list[Tensor]:
        joint[:] = lstm(features[None], tuple(joint))[1]
        return [joint[0][-1]]

    return call_lstm if fused else call_cells


# The benchmark


def contenders(coordinates: int, many: int, *, device: str) -> list[Contender]:
    """All of them on one tensor of so many coordinates, and ours on many tensors of as many in all."""
    one = partial(parameters, coordinates, device=device)
    our, theirs = partial(lstm, device=device), partial(torch.optim.AdamW, fused=True)
    return [
        Contender(EAGER, lambda: step(our, one()), memory=True),
        Contender(COMPILED, lambda: step(partial(our, compile=True), one()), slow_start=True, memory=True),
        Contender(WHOLE, lambda: step(our, one(), compiled=True), slow_start=True, memory=True),
        Contender(MANY.format(many), lambda: step(our, one(many)), memory=True),
        Contender(HIERARCHICAL, lambda: step(partial(hierarchical, device=device), one()), memory=True),
        Contender(BUNDLED, lambda: step(bundled, one()), memory=True),
        Contender(FLOOR, partial(floor, coordinates, device=device)),
        Contender("two nn.LSTMCell", partial(cells, coordinates, device=device, fused=False), memory=True),
        Contender("nn.LSTM", partial(cells, coordinates, device=device, fused=True), memory=True),
        Contender("AdamW, fused", lambda: step(theirs, one()), memory=True),
    ]


def _groups(setup: Setup) -> dict[str, Group]:
    sizes = (1000,) if setup.quick else (100_000, 1_000_000)
    many = 10 if setup.quick else 10_000
    return {f"{n:,} coordinates": Group(contenders(n, many, device=setup.device), FLOOR) for n in sizes}


def _bars(groups: Mapping[str, Any]) -> list[Bar]:
    bars = []
    for title, group in groups.items():
        many = next((name for name in group["rows"] if name.endswith(" tensors")), "")
        bars += [
            Bar(f"time of ours over the floor, {title}", ratio(group, EAGER, FLOOR), 1.8),
            Bar(f"time of ours, compiled, over the floor, {title}", ratio(group, COMPILED, FLOOR), 1.3),
            Bar(f"time of {many} over one, {title}", ratio(group, many, EAGER), 2.0),
            Bar(f"time of hierarchical over LSTM, {title}", ratio(group, HIERARCHICAL, EAGER), 1.0),
            Bar(f"time of hierarchical as bundled over LSTM, {title}", ratio(group, BUNDLED, EAGER), 1.0),
        ]
    return bars


STATES = {"log/sign": ("log_sign", 320), "moments": ("moments", 328)}
"""What the LSTM sees of a gradient, and what its state may take for a coordinate, in bytes."""


def _facts(setup: Setup) -> dict[str, float]:
    return {f"bytes of state per coordinate, {name}": _bytes(feature) for name, (feature, _) in STATES.items()}


def _bytes(feature: str, coordinates: int = 1000) -> float:
    (param,) = parameters(coordinates)
    optimizer = LSTMOptimizer([param], rule=LSTMRule(feature))
    optimizer.step()
    # Tensors of one number, such as counters, are the parameter's and no coordinate's.
    tensors = [value for value in optimizer.state[param].values() if value.numel() >= coordinates]
    return sum(value.numel() * value.element_size() for value in tensors) / coordinates


def _fact_bars(facts: Mapping[str, float]) -> list[Bar]:
    names = {f"bytes of state per coordinate, {name}": bound for name, (_, bound) in STATES.items()}
    return [Bar(text, facts.get(text), bound) for text, bound in names.items()]


BENCHMARKS = {
    "step": Benchmark(
        "One step of the LSTM optimizer with the paper's network (log/sign inputs, two layers of 20 units). The floor "
        "is both layers' matrix products into one chunk of memory, in chunks of the fastest size, and as many sigmoids "
        "and tanhs as their cells have, nothing else. Peak memory is what a step takes beyond its state.",
        _groups,
        _bars,
        _facts,
        _fact_bars,
    )
}
