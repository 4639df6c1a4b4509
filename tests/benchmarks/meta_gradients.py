"""The full second-order meta-gradient of MAML, as this package and its peers compute it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from learned_optim import differentiable_twice
from meta_init import Batch, Sinusoids, Task, few_shot_conv, maml, sine_mlp, supervised_loss
from meta_init.learner import STRATEGIES
from tests.benchmarks.measuring import Bar, Benchmark, Contender, Group, Setup, over, ratio

EAGER, COMPILED, PLAIN, FLOOR = "ours", "ours, compiled", "torch.func grad + vmap", "floor: shared weights"


class Problem(NamedTuple):
    """What is differentiated: the mean over tasks of the query loss after K steps of rate lr."""

    model: nn.Module
    tasks: Task
    lr: float
    steps: int


def sine(*, tasks: int = 25, steps: int = 1, hidden: int = 40, device: str = "cpu") -> Problem:
    """The 1-40-40-1 network on waves, 10-shot."""
    torch.manual_seed(0)
    waves = Sinusoids().sample(tasks, torch.Generator().manual_seed(1))
    return Problem(sine_mlp(hidden).to(device), _on(waves, device), 0.01, steps)


def images(
    model: nn.Module, *, tasks: int, steps: int = 1, ways: int = 5, shots: int = 1, lr: float = 0.4, device: str = "cpu"
) -> Problem:
    """A network on random images of 28 x 28 pixels, as many of them to be judged on as to adapt on."""
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(ways).repeat_interleave(shots).expand(tasks, -1)
    parts = [Batch(torch.rand(tasks, ways * shots, 28, 28, generator=generator), y) for _ in range(2)]
    return Problem(model.to(device), _on(Task(*parts), device), lr, steps)


def conv(*, tasks: int = 32, steps: int = 1, ways: int = 5, shots: int = 1, device: str = "cpu") -> Problem:
    """The convolutional network of the Omniglot tables."""
    torch.manual_seed(0)
    return images(few_shot_conv(ways), tasks=tasks, steps=steps, ways=ways, shots=shots, device=device)


def _on(tasks: Task, device: str) -> Task:
    support, query = (Batch(x.to(device), y.to(device)) for x, y in tasks)
    return Task(support, query)


def grads(model: nn.Module) -> list[Tensor]:
    """What ``backward()`` has left, in the order of the parameters."""
    return [p.grad for p in model.parameters()]


def without_running_statistics(model: nn.Module) -> nn.Module:
    """Norms by their batch, which is what MAML uses and `MetaLearner` sees to by itself; for everybody else."""
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.track_running_stats = False
            norm.running_mean = norm.running_var = norm.num_batches_tracked = None
    return model


# Contenders


def ours(problem: Problem, **options: Any) -> Callable[[], list[Tensor]]:
    """As the documentation says: ``outer_loss`` and ``backward``."""
    learner = maml(problem.model, lr=problem.lr, steps=problem.steps, **options)

    def call() -> list[Tensor]:
        learner.zero_grad()
        learner.outer_loss(problem.tasks)[0].backward()
        return grads(problem.model)

    return call


def plain(problem: Problem) -> Callable[[], list[Tensor]]:
    """What one writes with torch.func in a few lines; under vmap torch's own norms have wrong second derivatives."""
    model, tasks = without_running_statistics(problem.model), problem.tasks
    params = {name: p.detach() for name, p in model.named_parameters()}

    def loss(theta: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return supervised_loss(functional_call(model, theta, (x,)), y)

    def task_loss(theta: dict[str, Tensor], task: Task) -> Tensor:
        for _ in range(problem.steps):
            step = grad(loss)(theta, *task.support)
            theta = {name: p - problem.lr * step[name] for name, p in theta.items()}
        return loss(theta, *task.query)

    meta_gradient = grad(lambda theta: vmap(partial(task_loss, theta))(tasks).mean())

    def call() -> list[Tensor]:
        with differentiable_twice():
            return list(meta_gradient(params).values())

    return call


def floor(problem: Problem) -> Callable[[], None]:
    """No adaptation: one forward and backward pass of every input as often as the inner loop looks at it."""
    model, (support, query) = without_running_statistics(problem.model), problem.tasks
    x, y = (torch.cat([s] * problem.steps + [q]).flatten(0, 1) for s, q in zip(support, query, strict=True))

    def call() -> None:
        model.zero_grad()
        supervised_loss(model(x), y).backward()

    return call


def higher_loop(problem: Problem) -> Callable[[], list[Tensor]]:
    """A loop over tasks, the gradients of which add up, as in higher's own example."""
    import higher

    model, tasks = without_running_statistics(problem.model), problem.tasks
    optimizer = torch.optim.SGD(model.parameters(), lr=problem.lr)
    count = len(tasks.support.y)

    def call() -> list[Tensor]:
        model.zero_grad()
        for xs, ys, xq, yq in zip(*tasks.support, *tasks.query, strict=True):
            with higher.innerloop_ctx(model, optimizer, copy_initial_weights=False) as (fast, inner):
                for _ in range(problem.steps):
                    inner.step(supervised_loss(fast(xs), ys))
                (supervised_loss(fast(xq), yq) / count).backward()
        return grads(model)

    return call


def torchopt_loop(problem: Problem) -> Callable[[], list[Tensor]]:
    """A loop over tasks with its differentiable SGD, as in TorchOpt's own example of MAML."""
    import torchopt

    model, tasks = without_running_statistics(problem.model), problem.tasks
    inner = torchopt.MetaSGD(model, lr=problem.lr)
    params = list(model.parameters())

    def call() -> list[Tensor]:
        for p in params:
            p.grad = None
        start = [torchopt.extract_state_dict(part, by="reference") for part in (model, inner)]
        losses = []
        for xs, ys, xq, yq in zip(*tasks.support, *tasks.query, strict=True):
            for _ in range(problem.steps):
                inner.step(supervised_loss(model(xs), ys))
            losses.append(supervised_loss(model(xq), yq))
            for part, state in zip((model, inner), start, strict=True):
                torchopt.recover_state_dict(part, state)
        torch.stack(losses).mean().backward()
        return [p.grad for p in params]

    return call


def jax_jit(problem: Problem) -> Callable[[], Any]:
    """jit(grad(vmap)) with the same weights and tasks."""
    from tests.benchmarks.in_jax import meta_gradient

    return meta_gradient(problem.model, problem.tasks, lr=problem.lr, steps=problem.steps)


def contenders(make: Callable[[], Problem], *, memory: bool = False) -> list[Contender]:
    """All of them on one problem."""
    return [
        Contender(PLAIN, lambda: plain(make()), memory=memory),
        Contender("higher", lambda: higher_loop(make()), peer=True),
        Contender("TorchOpt", lambda: torchopt_loop(make()), peer=True),
        Contender("JAX", lambda: jax_jit(make()), peer=True, slow_start=True),
        Contender(EAGER, lambda: ours(make()), memory=memory),
        Contender(COMPILED, lambda: ours(make(), compile=True), memory=memory, slow_start=True),
        Contender(FLOOR, lambda: floor(make())),
    ]


# Benchmarks

TITLE = "meta-gradient"


def _sine(steps: int, setup: Setup) -> dict[str, Group]:
    make = partial(sine, tasks=3 if setup.quick else 25, steps=steps, device=setup.device)
    return {TITLE: Group(contenders(make), "higher")}


def _conv(steps: int, setup: Setup) -> dict[str, Group]:
    make = partial(conv, tasks=2 if setup.quick else 32, steps=steps, device=setup.device)
    return {TITLE: Group(contenders(make, memory=True), "higher")}


def _sine_bars(groups: Mapping[str, Any]) -> list[Bar]:
    group = groups[TITLE]
    return [
        Bar("time of ours, compiled, over JAX", ratio(group, COMPILED, "JAX"), 1.1),
        Bar("ours, compiled, times faster than higher", ratio(group, "higher", COMPILED), 50, at_most=False),
    ]


def _conv_bars(groups: Mapping[str, Any]) -> list[Bar]:
    group = groups[TITLE]
    peaks = {name: row.get("peak") for name, row in group["rows"].items()}
    return [
        Bar("ours, compiled, times faster than higher", ratio(group, "higher", COMPILED), 3, at_most=False),
        Bar("ours, compiled, times faster than TorchOpt", ratio(group, "TorchOpt", COMPILED), 2, at_most=False),
        *(Bar(f"memory of {n} over {PLAIN}", over(peaks.get(n), peaks.get(PLAIN)), 1.5) for n in (EAGER, COMPILED)),
    ]


def _untold(call: Callable[[], Any]) -> Callable[[], None]:
    """Without the result.

    That strategies agree is a law, tested in float64; here a loop has other kernels for norms, and rounding tips over
    ReLUs that are a hundredth of the largest entry.
    """

    def silent() -> None:
        call()

    return silent


def _strategies(setup: Setup) -> dict[str, Group]:
    device = setup.device
    counts = (1, 2) if setup.quick else (1, 4, 32)
    width = 16 if setup.quick else 512

    def wide(tasks: int) -> Problem:
        torch.manual_seed(0)
        layers = nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 5)
        return images(nn.Sequential(*layers), tasks=tasks, lr=0.01, device=device)

    shapes: dict[str, Callable[..., Problem]] = {
        "sine network, 10-shot": partial(sine, device=device),
        "conv, 5-way 1-shot": partial(conv, device=device),
        "conv, 5-way 5-shot": partial(conv, shots=5, device=device),
        "conv, 20-way 5-shot": partial(conv, ways=20, shots=5, device=device),
        f"784-{width}-{width}-5, 5-way 1-shot": wide,
    }
    if setup.quick:
        del shapes["conv, 5-way 5-shot"], shapes["conv, 20-way 5-shot"]
    groups = {}
    for name, shape in shapes.items():
        for tasks in counts:
            if name == "conv, 20-way 5-shot" and tasks > 4:
                continue  # minutes
            make = partial(shape, tasks=tasks)
            rows = [Contender(s, lambda make=make, s=s: _untold(ours(make(), strategy=s))) for s in STRATEGIES]
            groups[f"{name}, {tasks} task{'s' if tasks > 1 else ''}"] = Group(rows, "auto")
    return groups


def _strategy_bars(groups: Mapping[str, Any]) -> list[Bar]:
    worst = {}
    for title, group in groups.items():
        ratios = [ratio(group, "auto", strategy) for strategy in ("vmap", "loop")]
        worst[title] = max((value for value in ratios if value is not None), default=None)
    return [Bar(f"time of auto over the best, {title}", value, 1.15) for title, value in worst.items()]


def _plural(steps: int) -> str:
    return "one inner step" if steps == 1 else f"{steps} inner steps"


BENCHMARKS = {
    **{
        f"sine-{steps}": Benchmark(
            f"Second-order meta-gradient of MAML, sine MLP 1-40-40-1, 25 tasks, 10-shot, {_plural(steps)}.",
            partial(_sine, steps),
            _sine_bars,
        )
        for steps in (1, 5)
    },
    **{
        f"conv-{steps}": Benchmark(
            "Second-order meta-gradient of MAML, the Omniglot tables' convolutional network, 32 tasks, 5-way 1-shot, "
            f"{_plural(steps)}; random images.",
            partial(_conv, steps),
            _conv_bars,
        )
        for steps in (1, 5)
    },
    "strategy": Benchmark(
        'How tasks are batched: what `strategy="auto"` takes beside both strategies; eager, one inner step.',
        _strategies,
        _strategy_bars,
    ),
}
