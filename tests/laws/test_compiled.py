"""A compiled meta-gradient is the eager one.

Most of it is shown on the traced graph alone, since the compiler takes half a minute for each."""

import warnings

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils._pytree import tree_map

from meta_init import ALGORITHMS, Batch, Sinusoids, Task, few_shot_conv, maml, maml_plus_plus, sine_mlp
from meta_init import compiled as under_test


@pytest.fixture
def traces(monkeypatch):
    """Leaves out the compiler; a list of the graphs that were made."""
    made = []
    monkeypatch.setattr(under_test, "_compiled", lambda graph, leaves: made.append(graph) or graph)
    return made


def waves(count=3, shots=5, seed=0):
    drawn = Sinusoids(shots=shots).sample(count, torch.Generator().manual_seed(seed))
    return tree_map(lambda leaf: leaf.double(), drawn)


def pictures(count=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(3).expand(count, 3).contiguous()
    return Task(*(Batch(torch.rand(count, 3, 8, 8, generator=generator, dtype=torch.float64), y) for _ in range(2)))


class Scaled(nn.Module):
    """With a frozen parameter, a buffer and a parameter that has no effect."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(1, 6), nn.Linear(6, 1)
        self.frozen = nn.Parameter(torch.tensor(0.5), requires_grad=False)
        self.idle = nn.Parameter(torch.zeros(2))
        self.register_buffer("shift", torch.tensor(0.25))

    def forward(self, x):
        return self.head(torch.tanh(self.body(x) * self.frozen + self.shift))


MODELS = {
    "mlp": (lambda: sine_mlp(6), waves),
    "conv": (lambda: few_shot_conv(3, filters=4, size=8, blocks=2), pictures),
    "scaled": (Scaled, waves),
}
models = pytest.mark.parametrize("model", MODELS)


def pair(model="mlp", algorithm="maml", **options):
    """The same learner, eager and compiled, and tasks."""
    make, tasks = MODELS[model]
    learners = []
    for compile in (False, True):
        torch.manual_seed(0)
        learners.append(ALGORITHMS[algorithm](make(), lr=0.05, steps=2, compile=compile, **options).double())
    return *learners, tasks()


def same(eager, ours, tasks):
    results = []
    for learner in (eager, ours):
        learner.zero_grad()
        value, logs = learner.outer_loss(tasks)
        (3 * value).backward()
        gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in learner.named_parameters()}
        results.append((value.detach(), logs, gradients))
    assert_close(results[0], results[1])
    assert any(bool(gradient.abs().max() > 0) for gradient in results[1][2].values())
    assert not any(log.requires_grad for log in results[1][1].values())


@pytest.mark.parametrize("strategy", ["vmap", "loop"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@models
def test_it_is_the_eager_one(model, algorithm, strategy, traces):
    eager, ours, tasks = pair(model, algorithm, strategy=strategy)
    same(eager, ours, tasks)
    assert len(traces) == 1
    assert ours.compiled.seconds > 0


def test_new_tasks_and_weights_need_no_new_graph_and_other_sizes_do(traces):
    eager, ours, _ = pair()
    for seed in range(3):
        same(eager, ours, waves(seed=seed))
        for learner in (eager, ours):
            torch.optim.SGD(learner.parameters(), lr=0.01).step()
    assert len(traces) == 1
    same(eager, ours, waves(shots=4))
    same(eager, ours, [Task(*(Batch(b.x[0], b.y[0]) for b in waves(shots=shots))) for shots in (2, 3)])
    assert len(traces) == 3
    same(eager, ours, waves())
    assert len(traces) == 3


def test_tasks_that_lie_otherwise_in_memory_need_another_graph(traces):
    eager, ours, tasks = pair("conv")
    turned = tree_map(lambda leaf: leaf.mT.contiguous().mT if leaf.dim() > 2 else leaf, tasks)
    for given in (tasks, turned, tasks):
        same(eager, ours, given)
    assert len(traces) == 2


def test_what_is_held_may_change(traces):
    eager, ours, tasks = pair("scaled")
    same(eager, ours, tasks)
    with torch.no_grad():
        for learner in (eager, ours):
            learner.model.frozen.fill_(2.0)
            learner.model.shift.fill_(-1.0)
    same(eager, ours, tasks)
    assert len(traces) == 1


class Shared(nn.Module):
    """Two layers with the same weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(1, 6), nn.Linear(1, 6), nn.Linear(6, 1)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.head(torch.tanh(self.first(x)) * torch.tanh(self.second(2 * x)))


@pytest.mark.parametrize("shared_from_the_start", [True, False])
def test_what_is_shared_may_change(traces, monkeypatch, shared_from_the_start):
    monkeypatch.setitem(MODELS, "shared", (Shared, waves))
    eager, ours, tasks = pair("shared")
    for shared in (shared_from_the_start, not shared_from_the_start):
        for learner in (eager, ours):
            first, second = learner.model.first, learner.model.second
            second.weight = first.weight if shared else nn.Parameter(0.5 * first.weight.detach())
        same(eager, ours, tasks)
    assert len(traces) == 2


CHANGES = {
    "rate": lambda learner: setattr(learner.rule, "lr", 0.2),
    "steps": lambda learner: setattr(learner, "steps", 1),
    "derivatives": lambda learner: setattr(learner, "first_order", True),
    "loss": lambda learner: setattr(learner, "loss", lambda prediction, target: (prediction - target).abs().mean()),
    "what adapts": lambda learner: learner.model[0].weight.requires_grad_(False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_settings_count(change, traces):
    eager, ours, tasks = pair()
    same(eager, ours, tasks)
    before = ours.outer_loss(tasks)[0]
    for learner in (eager, ours):
        CHANGES[change](learner)
    same(eager, ours, tasks)
    assert len(traces) == 2
    assert change in ("derivatives", "what adapts") or not torch.equal(before, ours.outer_loss(tasks)[0])


def test_weights_of_the_steps_may_change(traces):
    learners = [maml_plus_plus(sine_mlp(6), lr=0.05, steps=3, compile=compile).double() for compile in (False, True)]
    learners[1].load_state_dict(learners[0].state_dict())
    for weights in ([0.2, 0.3, 0.5], [0.1, 0.2, 0.7], None):
        for learner in learners:
            learner.step_weights = weights
        same(*learners, waves())
    assert len(traces) == 2  # with weights, and without


def test_dropout_draws_anew_and_follows_the_mode(traces):
    torch.manual_seed(0)
    learner = maml(nn.Sequential(nn.Linear(1, 50), nn.Dropout(0.5), nn.Linear(50, 1)), lr=0.01, compile=True).double()
    assert not torch.equal(learner.outer_loss(waves())[0], learner.outer_loss(waves())[0])
    learner.eval()
    assert torch.equal(learner.outer_loss(waves())[0], learner.outer_loss(waves())[0])
    assert len(traces) == 2


def test_half_precision_is_followed(traces):
    eager, ours, tasks = pair()
    for learner in (eager, ours):
        learner.float()
    tasks = tree_map(lambda leaf: leaf.float(), tasks)
    same(eager, ours, tasks)
    exact = ours.outer_loss(tasks)[0]
    gradients = []
    with torch.autocast("cpu", torch.bfloat16):
        for learner in (eager, ours):
            value = learner.outer_loss(tasks)[0]
            assert value != exact
            gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, list(learner.parameters()))]))
    assert len(traces) == 2
    # Sums of roundings to 8 bits, in another order.
    assert torch.cosine_similarity(*gradients, dim=0) > 0.999


def test_without_a_graph_only_the_value_is_computed(traces):
    eager, ours, tasks = pair()
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert_close(ours.outer_loss(tasks), eager.outer_loss(tasks))
    assert_close(ours.evaluate(tasks), eager.evaluate(tasks))
    assert not traces


def test_many_sizes_are_told_once(traces):
    ours = pair()[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for shots in range(1, 9):
            ours.outer_loss(waves(shots=shots))
    with pytest.warns(UserWarning, match="MetaLearner was compiled for 8 sizes of tasks or settings already, in "):
        ours.outer_loss(waves(shots=9))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours.outer_loss(waves(shots=10))


def test_it_cannot_be_differentiated_twice(traces):
    ours, tasks = pair()[1:]
    value, _ = ours.outer_loss(tasks)
    gradients = torch.autograd.grad(value, list(ours.parameters()), create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        sum(gradient.square().sum() for gradient in gradients).backward()


class Curious(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x * self.scale if float(x.sum()) > 0 else x


def test_a_model_that_looks_at_values_is_told(traces):
    learner = maml(Curious(), lr=0.1, strategy="loop", compile=True)
    with pytest.raises(RuntimeError, match=r"MetaLearner cannot be compiled, because .* use compile=False"):
        learner.outer_loss(Sinusoids().sample(2, torch.Generator().manual_seed(0)))


def test_an_error_of_the_model_stays_what_it_is(traces):
    learner = maml(nn.Linear(2, 1), lr=0.1, compile=True)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        learner.outer_loss(Sinusoids().sample(2, torch.Generator().manual_seed(0)))


def test_the_compiler_too_gives_the_eager_one():
    eager, ours, tasks = pair()
    same(eager, ours, tasks)
    same(eager, ours, waves(seed=1))


def test_without_a_compiler_the_graph_is_run(monkeypatch, tmp_path):
    torch._dynamo.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    eager, ours, tasks = pair()
    # Not by monkeypatch, which takes these settings for gone when it puts them back.
    with torch._inductor.config.patch({"cpp.cxx": (None, "/no/such/compiler")}):
        with pytest.warns(UserWarning, match="compile=True goes on without a compiler: .*No working C\\+\\+ compiler"):
            same(eager, ours, tasks)
        same(eager, ours, tasks)
