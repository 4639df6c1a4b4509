"""Learning to find a goal that is never shown: MAML with policy gradients, as a model that acts and a custom loss.

    python docs/examples/point_navigation.py [--quick] [--out demo]

A point starts at the origin of the plane. Goals are uniform in [-0.5, 0.5]^2, the reward is the negative squared
distance to the goal, velocities are clipped to [-0.1, 0.1], and an episode ends within 0.01 of the goal. The policy
(2-100-100-2, ReLU, Gaussian actions with learned standard deviations) sees its position only; one REINFORCE step on
20 episodes has to tell it where to go. Compared, on 200 goals that no training saw: MAML, first-order MAML, the same
policy pretrained on all goals, and one that is not trained; the step sizes of the last two are the best of seven on
validation goals. Writes point-navigation.png and point-navigation.json.

Source: Finn et al. 2017, section 5.3 and appendix A.3. Deviations: 20 time steps in place of 100; Adam at 3e-3, falling
to zero on a cosine, in place of TRPO; inner steps of 0.01 on plain returns with `policy_gradient_loss`'s baseline and
second derivatives, in place of 0.1, halved after the first step, with a linear baseline; 300 iterations in place of up
to 500, and their last policy in place of the best; all three steps of adaptation use the same noise, and 20 episodes in
place of the paper's 40 when tested; PyTorch's default initialisation.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from learned_optim.seeds import seeded
from meta_init import Batch, MetaLearner, Task, maml

HORIZON, EPISODES = 20, 20
SPEED = 0.1
REACHED = 0.01
STEPS = 3
MAML_RATE = 0.01
RATES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)


class Episodes(NamedTuple):
    """N episodes of H time steps.

    Attributes:
        positions: s_1, ..., s_H, shape (N, H, 2): where each action led.
        log_probs: log pi(a_t | s_t) for t = 0, ..., H - 1, shape (N, H); actions and positions are constants in it.
    """

    positions: Tensor
    log_probs: Tensor


class Navigator(nn.Module):
    """A stochastic policy together with the plane that it moves in: from noise to episodes.

    a_t = mu(s_t) + sigma o noise_t and s_{t+1} = s_t + 0.1 clip(a_t, -1, 1), from s_0 = 0. All randomness is in the
    input, so that the module is a pure function and the same episodes come from the same noise. Being called with
    adapted parameters it acts with the adapted policy.

    Args:
        hidden: Width of the two hidden layers.

    Source: Finn et al. 2017, section 5.3.
    """

    def __init__(self, hidden: int = 100) -> None:
        super().__init__()
        self.mean = nn.Sequential(
            nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 2)
        )
        self.log_sigma = nn.Parameter(torch.zeros(2))

    def forward(self, noise: Tensor) -> Episodes:
        """Acts once with each row of noise, shape (N, H, 2), of the standard normal distribution."""
        # The world has no derivative for the agent: only the probabilities of what it did are differentiated.
        with torch.no_grad():
            position = torch.zeros_like(noise[:, 0])
            positions, actions = [position], []
            for draw in noise.unbind(1):
                action = self.mean(position) + self.log_sigma.exp() * draw
                position = position + SPEED * action.clamp(-1, 1)
                actions.append(action)
                positions.append(position)
            states, acted = torch.stack(positions, 1), torch.stack(actions, 1)  # (N, H + 1, 2), (N, H, 2)
        # All time steps at once, which is faster than differentiating the loop above.
        scaled = (acted - self.mean(states[:, :-1])) * (-self.log_sigma).exp()
        # Without the constant log(2 pi) of the normal distribution.
        return Episodes(states[:, 1:], (-0.5 * scaled.square() - self.log_sigma).sum(-1))


def rewards(positions: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
    """-||s_{t+1} - goal||^2 until the goal is reached, then nothing.

    Args:
        positions: Shape (N, H, 2).
        goal: Shape (N, 2).

    Returns:
        Rewards, and 1 for time steps of an episode that still runs, else 0, both of shape (N, H).
    """
    squared = (positions - goal.unsqueeze(1)).square().sum(-1)
    reached = (squared < REACHED**2).to(squared).cumsum(1)
    running = (torch.cat([torch.zeros_like(reached[:, :1]), reached[:, :-1]], 1) == 0).to(squared)
    return -squared * running, running


def policy_gradient_loss(episodes: Episodes, goal: Tensor) -> Tensor:
    """The negative mean return, with the policy gradient as its derivative, once and twice.

    L = -1/N sum_i sum_t [r_it + (rho_it - 1) A_it], rho_it = pi(a_it | s_it) / (the same, held constant) = 1. Its value
    is the negative return; its gradient is REINFORCE, -1/N sum_i sum_t A_it grad log pi(a_it | s_it); its second
    derivative, which MAML needs, A_it (hess log pi + grad log pi grad log pi^T). The advantage A_it is the sum of
    rewards from t on minus the mean of that sum over the N - 1 other episodes, which leaves the gradient unbiased.

    Args:
        episodes: What the policy did, N >= 2.
        goal: Shape (N, 2). The only place where goals enter.

    Source: Williams 1992 (REINFORCE). Second derivative: Rothfuss et al. 2019 (ProMP), low variance curvature, which
    leaves out the products of gradients at different times that Foerster et al. 2018 (DiCE) keep. Deviation from Finn
    et al. 2017: with their log pi in place of rho the outer product would be missing; their baseline is linear in
    features of position and time.
    """
    reward, running = rewards(episodes.positions, goal)
    to_go = reward.flip(1).cumsum(1).flip(1)
    count = to_go.shape[0]
    advantage = running * (to_go - to_go.mean(0)) * count / (count - 1)  # x - mean of the others, written shorter
    ratio = (episodes.log_probs - episodes.log_probs.detach()).exp()
    return -(reward + (ratio - 1) * advantage).sum(1).mean()


class Goals:
    """Tasks of reaching one goal: x is the noise of the episodes, y the goal, the same for all episodes of a task.

    Args:
        episodes: N, in the support set and in the query set.
        horizon: H, time steps.
    """

    def __init__(self, episodes: int = EPISODES, horizon: int = HORIZON) -> None:
        self.episodes, self.horizon = episodes, horizon

    def sample(self, count: int, generator: torch.Generator) -> Task:
        """Draws ``count`` tasks: x of shape (count, N, H, 2), y of shape (count, N, 2)."""
        n = self.episodes
        goal = torch.rand(count, 1, 2, generator=generator) - 0.5
        noise = torch.randn(count, 2 * n, self.horizon, 2, generator=generator)
        y = goal.expand(count, n, 2)
        return Task(Batch(noise[:, :n], y), Batch(noise[:, n:], y))


def learner(model: nn.Module, lr: float, *, first_order: bool = False) -> MetaLearner:
    """MAML with one policy gradient step of size ``lr``."""
    return maml(model, lr=lr, loss=policy_gradient_loss, first_order=first_order)


def unadapted_loss(model: nn.Module, tasks: Task) -> Tensor:
    """The mean over goals of the loss without adaptation: what pretraining minimises."""
    return torch.vmap(lambda batch: policy_gradient_loss(model(batch.x), batch.y))(tasks.query).mean()


def train(name: str, iterations: int) -> MetaLearner:
    """Trains the policy for adaptation, or (``name="pretrained"``) for all goals at once without any."""
    torch.manual_seed(0)
    model = Navigator()
    trained = learner(model, MAML_RATE, first_order=name == "first-order MAML")
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    start = time.perf_counter()
    for i in range(iterations):
        tasks = Goals().sample(20, seeded("point navigation", "train", i))
        loss = unadapted_loss(model, tasks) if name == "pretrained" else trained.outer_loss(tasks)[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cosine.step()
    print(f"{name}: {iterations} iterations in {time.perf_counter() - start:.0f} s")
    return trained


def tuned(name: str, model: nn.Module) -> MetaLearner:
    """The step size with which one step from here does best on validation goals."""
    validation = Goals().sample(100, seeded("point navigation", "val"))
    losses = {lr: float(learner(model, lr).evaluate(validation, 1).losses[:, 1].mean()) for lr in RATES}
    best = min(RATES, key=lambda lr: losses[lr])
    print(f"{name}: adapts with steps of {best:g}, the best of {RATES} on validation goals")
    return learner(model, best)


def straight(goal: Tensor) -> Tensor:
    """Returns, shape (T,), of going to each goal, shape (T, 2), as fast as possible: a bound for those who know it."""
    position, positions = torch.zeros_like(goal), []
    for _ in range(HORIZON):
        position = position + (goal - position).clamp(-SPEED, SPEED)
        positions.append(position)
    return rewards(torch.stack(positions, 1), goal)[0].sum(1)


def interval(values: Tensor) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval over goals."""
    return float(values.mean()), float(1.96 * values.std() / len(values) ** 0.5)


def draw_paths(axes: Axes, name: str, adaptable: MetaLearner) -> None:
    """Where the mean of the policy leads before and after each step, for four goals."""
    goals = torch.tensor([[0.4, 0.3], [-0.25, 0.45], [-0.45, -0.2], [0.2, -0.4]])
    noise = torch.randn(EPISODES, HORIZON, 2, generator=seeded("point navigation", "picture"))
    styles = ((0, ":", 1.5), (1, "--", 1.2), (2, "-.", 1.2), (3, "-", 1.8))
    for i, goal in enumerate(goals):
        support = Batch(noise, goal.expand(EPISODES, 2))
        for steps, style, width in styles:
            path = adaptable.adapt(support, steps)(torch.zeros(1, HORIZON, 2)).positions[0]
            path = torch.cat([torch.zeros(1, 2), path])
            color = "black" if steps == 0 else f"C{i}"
            axes.plot(*path.T, style, color=color, linewidth=width, marker="." if steps == 3 else None, markersize=4)
        axes.plot(*goal, "*", color=f"C{i}", markersize=15, markeredgecolor="black", zorder=4)
    for steps, style, width in styles:
        label = "before" if steps == 0 else f"after {steps} step{'s' if steps > 1 else ''}"
        axes.plot([], [], style, color="black" if steps == 0 else "gray", linewidth=width, label=label)
    axes.plot(0, 0, "ko", markersize=4, zorder=5)
    axes.set(title=name, xlim=(-0.6, 0.6), ylim=(-0.6, 0.6), aspect="equal", xlabel="x")
    axes.grid(alpha=0.3)


def draw(learners: dict[str, MetaLearner], returns: dict[str, Tensor], bound: float, path: Path) -> None:
    """Paths of MAML and of pretraining, and the return against steps of adaptation."""
    figure = Figure(figsize=(14, 4.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    draw_paths(left, "MAML", learners["MAML"])
    draw_paths(middle, "pretrained on all goals", learners["pretrained"])
    left.set_ylabel("y")
    left.legend(fontsize=8, loc="lower left")
    # Other colours than those of the goals.
    for color, (name, values) in zip(("purple", "orchid", "saddlebrown", "gray"), returns.items(), strict=True):
        means, halves = zip(*(interval(values[:, k]) for k in range(STEPS + 1)), strict=True)
        right.errorbar(range(STEPS + 1), means, halves, color=color, marker="o", markersize=4, capsize=3, label=name)
    right.axhline(bound, color="black", linestyle=":", label="straight to the goal, being told it")
    right.set(title=f"return on {len(values)} fresh goals", xlabel="policy gradient steps", xticks=range(STEPS + 1))
    right.legend(fontsize=8)
    right.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--goals", type=int, default=200, help="to test on")
    parser.add_argument("--quick", action="store_true", help="40 iterations")
    parser.add_argument("--out", type=Path, default=Path("demo"))
    args = parser.parse_args()
    # The operations are too small to be shared between threads.
    torch.set_num_threads(1)
    iterations = 40 if args.quick else args.iterations

    learners = {name: train(name, iterations) for name in ("MAML", "first-order MAML")}
    learners["pretrained"] = tuned("pretrained", train("pretrained", iterations).model)
    torch.manual_seed(0)
    learners["random"] = tuned("random", Navigator())

    test = Goals().sample(args.goals, seeded("point navigation", "test"))
    bound = float(straight(test.query.y[:, 0]).mean())
    print(f"\nReturn on {args.goals} goals that no training saw, {EPISODES} episodes a step, with 95 % intervals:\n")
    print(f"{'':<18}" + "".join(f"{f'{k} step' + 's' * (k != 1):<18}" for k in range(STEPS + 1)))
    returns = {name: -one.evaluate(test, STEPS).losses for name, one in learners.items()}  # (T, STEPS + 1) each
    table = {name: [interval(values[:, k]) for k in range(STEPS + 1)] for name, values in returns.items()}
    for name, row in table.items():
        print(f"{name:<18}" + "".join(f"{f'{mean:.2f} +- {half:.2f}':<18}" for mean, half in row))
    print(f"\nStraight to the goal, being told it: {bound:.2f}")
    draw(learners, returns, bound, args.out / "point-navigation.png")
    record = {
        "iterations": iterations,
        "goals": args.goals,
        "straight": round(bound, 3),
        "return": {name: [[round(v, 3) for v in pair] for pair in row] for name, row in table.items()},
    }
    (args.out / "point-navigation.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"\nWrote {args.out / 'point-navigation.png'}")


if __name__ == "__main__":
    main()
