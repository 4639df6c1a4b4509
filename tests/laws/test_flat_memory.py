"""Steps that are recomputed: the same numbers, and memory that does not grow with them."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import cross_entropy
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from learned_optim import LSTMRule, SGDRule, bind, differentiable_twice, unroll
from learned_optim.captured import Captured
from learned_optim.problems import NetworkProblems
from lightning_modules import LearnedOptimizerModule
from meta_init import maml
from tests.laws.test_meta_init import LAYERS, network, tasks
from tests.specs import RULES, seeded_rule, small_problem

flat = pytest.mark.parametrize("flat_memory", [1, 3, True], ids=["every step", "every third", "every tenth"])
order = pytest.mark.parametrize("first_order", [False, True], ids=["exact", "first order"])


@pytest.mark.parametrize("name", RULES)
@flat
@order
def test_every_rule_has_the_meta_gradient_of_the_plain_unroll(name, flat_memory, first_order):
    problem = small_problem()
    rule = seeded_rule(name, problem.params)

    def meta(flat_memory):
        params = {key: p.clone().requires_grad_() for key, p in problem.params.items()}
        lr = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
        result = unroll(
            rule, problem.loss, params, rule.init_state(params), steps=8, lr=lr, first_order=first_order,
            flat_memory=flat_memory,
        )  # fmt: skip
        loss = problem.loss(result.params) + result.losses.square().sum()
        state = [s.sum() for own in result.state.per_param.values() for s in own.values()]
        loss = loss + sum(state, torch.zeros(()))
        return loss, torch.autograd.grad(loss, [lr, *params.values(), *rule.parameters()])

    assert_close(meta(flat_memory), meta(False), rtol=0, atol=1e-9)


@pytest.mark.parametrize("layer", [*LAYERS, "Dropout"])
@pytest.mark.parametrize("strategy", ["vmap", "loop"])
def test_every_layer_has_the_meta_gradient_of_the_plain_unroll(layer, strategy):
    model = network(layer if layer in LAYERS else "Dropout off")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5 if layer == "Dropout" else 0.0

    def meta(flat_memory):
        learner = maml(model, lr=0.1, steps=3, strategy=strategy, flat_memory=flat_memory)
        torch.manual_seed(2)
        loss, _ = learner.outer_loss(tasks((3, 8)))
        return loss, torch.rand(()), torch.autograd.grad(loss, [*learner.parameters()])

    assert_close(meta(True), meta(False), rtol=0, atol=1e-9)


@order
def test_it_works_inside_the_transforms_of_torch_func(first_order):
    """vmap over problems inside grad over phi, with a layer and data that the loss takes from elsewhere."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(6, track_running_stats=False)
    model = nn.Sequential(nn.Linear(4, 6), norm, nn.Tanh(), nn.Linear(6, 3)).double()
    rule = LSTMRule(hidden_size=3).double()
    x, y = torch.randn(5, 7, 4, dtype=torch.float64), torch.randint(0, 3, (5, 7))

    def outer(learned, flat_memory):
        phi, first = learned

        def one(x, y):
            params = {name: p for name, p in model.named_parameters() if name.startswith("3")}

            def loss(params, scale):
                with differentiable_twice():
                    return cross_entropy(scale * functional_call(model, {**first, **params}, (x,)), y)

            result = unroll(
                bind(rule, phi), loss, params, rule.init_state(params), steps=4, batches=[1.0, 2.0, 3.0, 4.0],
                first_order=first_order, flat_memory=flat_memory,
            )  # fmt: skip
            return loss(result.params, 1.0) + result.losses.sum()

        return torch.vmap(one)(x, y).mean()

    first = {name: p.detach() for name, p in model.named_parameters() if not name.startswith("3")}
    learned = ({name: p.detach() for name, p in rule.named_parameters()}, first)
    found, expected = grad(outer)(learned, 2), grad(outer)(learned, False)
    assert_close(found, expected, rtol=0, atol=1e-9)
    assert all(value.abs().sum() > 0 for value in expected[1].values())


def test_a_gradient_of_the_meta_gradient():
    problem = small_problem()

    def second(flat_memory):
        params = {key: p.clone().requires_grad_() for key, p in problem.params.items()}
        rule = SGDRule(0.1)
        result = unroll(rule, problem.loss, params, rule.init_state(params), steps=5, flat_memory=flat_memory)
        meta = torch.autograd.grad(problem.loss(result.params), [*params.values()], create_graph=True)
        return torch.autograd.grad(sum(value.square().sum() for value in meta), [*params.values()])

    assert_close(second(2), second(False), rtol=0, atol=1e-9)


def test_steps_are_recomputed_under_the_autocast_that_they_were_taken_under():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)), torch.randn(3, 5, 8)
    params = {name: p.detach() for name, p in model.named_parameters()}
    rule, lr, seen = SGDRule(0.1), torch.tensor(1.0, requires_grad=True), set()

    def loss(params, x):
        out = functional_call(model, params, (x,))
        seen.add(out.dtype)
        return out.float().square().mean()

    def one(x):
        result = unroll(
            rule, loss, params, rule.init_state(params), batches=[x] * 4, steps=4, lr=lr, flat_memory=2
        )  # fmt: skip
        return result.losses[-1]

    with torch.autocast("cpu", dtype=torch.bfloat16):
        after = torch.vmap(one)(x).mean()
    after.backward()
    assert seen == {torch.bfloat16}
    assert lr.grad != 0


def test_steps_are_recomputed_in_the_modes_that_they_were_taken_in():
    """Layer norm, whose second derivatives vmap gets wrong outside `differentiable_twice`."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 1)), torch.randn(3, 5, 8)
    params = {name: p.detach() for name, p in model.named_parameters()}
    rule, lr = SGDRule(0.1), torch.tensor(1.0, requires_grad=True)

    def meta(flat_memory):
        def one(x):
            return unroll(
                rule, lambda p: functional_call(model, p, (x,)).square().mean(), params, rule.init_state(params),
                steps=4, lr=lr, flat_memory=flat_memory,
            ).losses[-1]  # fmt: skip

        with differentiable_twice():
            loss = torch.vmap(one)(x).mean()
        return torch.autograd.grad(loss, [lr])

    assert_close(meta(True), meta(False), rtol=1e-5, atol=0)


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_with_running_statistics_in_both_modes(training):
    model = nn.Sequential(nn.Flatten(), nn.Linear(24, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 4)).double()
    before = {name: value.clone() for name, value in model.named_buffers()}

    def meta(flat_memory):
        learner = maml(model, lr=0.1, steps=3, flat_memory=flat_memory).train(training)
        loss, _ = learner.outer_loss(tasks((3, 8)))
        return loss, torch.autograd.grad(loss, [*learner.parameters()])

    assert_close(meta(True), meta(False), rtol=0, atol=1e-9)
    assert_close(dict(model.named_buffers()), before)


class Allocated(TorchDispatchMode):
    """Counts the bytes of the tensors that were made in it and are still there, after each operation."""

    def __init__(self):
        super().__init__()
        self.held, self.most = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {
            tensor.untyped_storage()._cdata for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)
        }
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in given:
                storage = tensor.untyped_storage()
                self.held[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.held = {key: value for key, value in self.held.items() if not value[0].expired()}
        self.most = max(self.most, sum(size for _, size in self.held.values()))
        return result


def peak(function):
    """The most bytes that are allocated at once while it runs, beyond those before."""
    with Allocated() as allocated:
        function()
    return allocated.most


def test_memory_grows_by_the_boundaries_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 10), nn.Tanh(), nn.Linear(10, 3))
    x, y = torch.randn(2000, 10), torch.randint(0, 3, (2000,))
    rule = SGDRule(0.1)
    kept = sum(p.numel() for p in model.parameters()) * 4

    def run(steps, flat_memory):
        params = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
        result = unroll(
            rule, lambda p: cross_entropy(functional_call(model, p, (x,)), y), params, rule.init_state(params),
            steps=steps, flat_memory=flat_memory,
        )  # fmt: skip
        torch.autograd.grad(result.losses[-1], [*params.values()])

    few, many = (peak(lambda steps=steps: run(steps, 1)) for steps in (5, 50))
    fewer, tens = (peak(lambda steps=steps: run(steps, True)) for steps in (21, 61))
    plain = peak(lambda: run(50, False))
    assert many - few < 2 * 45 * kept  # boundaries, and small change
    assert tens - fewer < 2 * 4 * kept  # every tenth
    assert fewer < 11 * few  # ten steps at once
    assert plain - few > 40 * x.numel() * 4  # what the plain unroll remembers of each step: the layers


def test_captured_tensors_are_found_once_and_replaced():
    weight, scale = torch.randn(3, requires_grad=True), torch.tensor(2.0)
    layer = nn.Linear(3, 3)

    def function(x):
        return (layer(x * weight) * scale + torch.zeros(3)).sum() + weight.sum()

    captured, x = Captured(), torch.randn(3)
    assert captured.watch(function, x) == function(x)
    captured.watch(function, x)
    assert [id(t) for t in captured.tensors] == [id(t) for t in (weight, layer.weight, layer.bias, scale)]
    zeros = [torch.zeros_like(t) for t in captured.tensors]
    assert captured.call(function, zeros, x) == 0


@order
@pytest.mark.parametrize("clip", [None, 1.0])
def test_the_module_has_the_same_meta_gradient(first_order, clip):
    def meta(flat_memory):
        torch.manual_seed(0)
        family = NetworkProblems(lambda: nn.Linear(3, 2), (torch.randn(32, 3), torch.randint(0, 2, (32,))),
                                 loss=cross_entropy, batch_size=8)  # fmt: skip
        module = LearnedOptimizerModule(
            family, LSTMRule(hidden_size=3).double(), horizon=10, window=10, instances=2, first_order=first_order,
            clip=clip, flat_memory=flat_memory,
        )  # fmt: skip
        instances = module._instances("train", 0, 2, copies=True)
        loss, _ = module.estimator.window(
            instances, module._started(instances), range(10), module._objective, generator=torch.Generator()
        )
        return loss, torch.autograd.grad(loss, [*module.rule.parameters()])

    assert_close(meta(3), meta(False), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("flat_memory", [-1, 2.0, "yes"])
def test_bad_values_are_refused(flat_memory):
    problem = small_problem()
    rule = SGDRule(0.1)
    with pytest.raises(ValueError, match="flat_memory must be"):
        unroll(rule, problem.loss, problem.params, rule.init_state(problem.params), steps=2, flat_memory=flat_memory)


def test_options_that_exclude_each_other_are_refused():
    with pytest.raises(ValueError, match="compile and flat_memory"):
        maml(nn.Linear(2, 2), lr=0.1, compile=True, flat_memory=True)
    learner = maml(nn.Linear(2, 2), lr=0.1, steps=2, flat_memory=True)
    with pytest.raises(ValueError, match="flat_memory=False"):
        learner.step_weights = [0.5, 0.5]
    with pytest.raises(ValueError, match="need estimator='truncated'"):
        LearnedOptimizerModule(estimator="evolution", flat_memory=True)
