"""What only a GPU can tell: the optimizer's step beside moving its state once, and what that is in whole trainings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from learned_optim import LSTMOptimizer
from tests.benchmarks.measuring import Bar, Benchmark, Contender, Group, Setup, quartiles, ratio
from tests.benchmarks.optimizer_step import STATES, lstm, parameters, rule, step
from tests.benchmarks.training import Training, omniglot, with_lightning

OURS, OURS_EXACT, ADAMW = "ours", "ours, without TF32", "AdamW, fused"
FLOOR = "its state, read and written once"
MAML_ITERATIONS = 60_000

Call = Callable[[], Any]


def exactly(call: Call) -> Call:
    """The same without TensorFloat-32."""

    def inside() -> Any:
        cudnn = torch.backends.cudnn
        # Not `cudnn.allow_tf32 = False`, which torch refuses once anything imported its own test utilities.
        with cudnn.flags(enabled=cudnn.enabled, benchmark=cudnn.benchmark, allow_tf32=False):
            return call()

    return inside


# The step


def moving(coordinates: int, *, device: str) -> Call:
    """What no step can do without: each number of the state is read and written."""
    state = torch.ones(coordinates * STATES["log/sign"][1] // 4, device=device)

    def call() -> None:
        state.mul_(1.0)

    return call


def _silent(call: Call) -> Call:
    """Without its result, which would be copied to the CPU to be compared."""

    def inside() -> None:
        call()

    return inside


def steps(coordinates: int, *, device: str) -> list[Contender]:
    """One step on one tensor."""
    one = partial(parameters, coordinates, device=device)
    ours = partial(lstm, device=device)
    quiet = _silent if coordinates > 10**7 else (lambda call: call)
    return [
        Contender(OURS, lambda: quiet(step(ours, one()))),
        Contender(OURS_EXACT, lambda: quiet(exactly(step(ours, one())))),
        Contender(FLOOR, partial(moving, coordinates, device=device)),
        Contender(ADAMW, lambda: step(partial(torch.optim.AdamW, fused=True), one())),
    ]


# A vision transformer


class VisionTransformer(nn.Module):
    """ViT (Dosovitskiy et al. 2021), by default B/16 for 224 x 224 pixels: 86 million parameters."""

    def __init__(self, size: int = 224, dim: int = 768, heads: int = 12, depth: int = 12, classes: int = 1000) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, dim, 16, stride=16)
        self.first = nn.Parameter(torch.zeros(1, 1, dim))
        self.places = nn.Parameter(torch.randn(1, (size // 16) ** 2 + 1, dim) * 0.02)
        options: dict[str, Any] = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        layer = nn.TransformerEncoderLayer(dim, heads, 4 * dim, **options)
        self.encoder = nn.TransformerEncoder(layer, depth, norm=nn.LayerNorm(dim), enable_nested_tensor=False)
        self.head = nn.Linear(dim, classes)

    def forward(self, images: Tensor) -> Tensor:
        """From shape (N, 3, size, size) to (N, classes)."""
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat((self.first.expand(len(x), -1, -1), x), dim=1) + self.places
        out: Tensor = self.head(self.encoder(x)[:, 0])
        return out


def training_step(make: Callable[[Any], torch.optim.Optimizer], *, batch: int, device: str, **sizes: int) -> Call:
    """Forward, backward and optimizer, by autocast to bfloat16."""
    torch.manual_seed(0)
    model = VisionTransformer(**sizes).to(device)
    size = sizes.get("size", 224)
    images, labels = torch.randn(batch, 3, size, size, device=device), torch.randint(10, (batch,), device=device)
    optimizer = make(model.parameters())

    def call() -> None:
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return call


def transformer(setup: Setup, batch: int) -> list[Contender]:
    """One training step with each optimizer."""
    small = {"size": 32, "dim": 16, "heads": 2, "depth": 1, "classes": 10}
    train = partial(training_step, batch=batch, device=setup.device, **(small if setup.quick else {}))

    def ours(params: Any) -> LSTMOptimizer:
        return LSTMOptimizer(params, rule=rule(setup.device))

    return [
        Contender(ADAMW, lambda: train(partial(torch.optim.AdamW, fused=True))),
        Contender(OURS, lambda: train(ours)),
        Contender(OURS_EXACT, lambda: exactly(train(ours))),
    ]


# A meta-learned initialisation


def maml() -> Training:
    """MAML on Omniglot, 5-way 1-shot, 32 tasks and one inner step as in its configuration, with random images."""
    return omniglot("omniglot-5w1s-maml")


EAGER, COMPILED = "MAML, Lightning", "MAML, Lightning, compiled"


def trainings(setup: Setup) -> list[Contender]:
    """Iterations of a fit."""
    cuda = setup.device.startswith("cuda")
    fit = partial(with_lightning, maml, accelerator="gpu" if cuda else "cpu", workers=6 if cuda else 0)
    fit = partial(fit, algorithm="maml")
    few, more = (3, 3) if setup.quick else (50, 1000)
    return [
        Contender(EAGER, partial(fit, iterations=few)),
        Contender(COMPILED, partial(fit, iterations=more, compile=True), slow_start=True),
    ]


# The benchmark

TRAINING = "Omniglot, 5-way 1-shot, 32 tasks"


def _groups(setup: Setup) -> dict[str, Group]:
    sizes = (1000,) if setup.quick else (10**6, 10**7, 10**8)
    batch = 2 if setup.quick else 256
    groups = {f"{n:,} coordinates": Group(steps(n, device=setup.device), FLOOR) for n in sizes}
    groups[f"ViT-B/16, {batch} images, bfloat16"] = Group(transformer(setup, batch), ADAMW)
    return groups | {TRAINING: Group(trainings(setup), EAGER)}


def minutes(group: Mapping[str, Any], name: str) -> float | None:
    """Of a whole training, compiling included."""
    row = group["rows"].get(name)
    return None if row is None else (row["first_call"] + MAML_ITERATIONS * quartiles(row["rounds"])[1]) / 60


def _bars(groups: Mapping[str, Any]) -> list[Bar]:
    bars = []
    for title, group in groups.items():
        if title.endswith("coordinates"):
            bars += [Bar(f"time of {name} over {FLOOR}, {title}", ratio(group, name, FLOOR), 2) for name in _OURS]
        elif title.startswith("ViT"):
            bars += [
                Bar(f"training step with {name} over {ADAMW}, {title}", ratio(group, name, ADAMW), 1.5)
                for name in _OURS
            ]
        else:
            text = f"minutes of {MAML_ITERATIONS:,} iterations, {title}"
            bars.append(Bar(text, minutes(group, COMPILED), 5))
    return bars


_OURS = (OURS, OURS_EXACT)

BENCHMARKS = {
    "gpu": Benchmark(
        "On a GPU, by `--device cuda`: one step of the LSTM optimizer with the paper's network, by its kernel; steps "
        "of training a vision transformer with it; and iterations of MAML in Lightning's Trainer with loader and log, "
        "with random images in place of the characters. Without TF32: as by `torch.backends.cudnn.allow_tf32 = False`.",
        _groups,
        _bars,
        device="cuda",
    )
}
