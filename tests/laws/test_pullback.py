"""Derivatives backwards by plain autograd are those of torch.func, wherever they are taken."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp
from torch.testing import assert_close

from learned_optim import LSTMRule, unroll
from learned_optim.eager import transformed
from learned_optim.pullback import vjp
from tests.specs import small_problem

X = torch.linspace(-1.0, 2.0, 6, dtype=torch.float64)


def function(a, b):
    """Two outputs, of which the second knows nothing of b."""
    return [(a * b).sin().sum() + a.square().sum(), a.exp()]


def cotangents(outputs):
    return [torch.full_like(output, 0.5) for output in outputs]


def by_torch(a, b):
    outputs, pull = torch.func.vjp(lambda *at: function(*at), a, b)
    return list(outputs), pull(cotangents(outputs))


def by_us(a, b):
    outputs, pull = vjp(function, a, b)
    return list(outputs), pull(cotangents(outputs))


PRIMALS = {
    "two leaves": lambda x: (x, x.clone().detach().requires_grad_()),
    "the same twice": lambda x: (x, x),
    "one made from the other": lambda x: (x, x * 2),
    "none that needs a gradient": lambda x: (x.detach(), x.detach() + 1),
    "one that needs none": lambda x: (x, x.detach() + 1),
}


@pytest.mark.parametrize("name", PRIMALS)
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_values_and_gradients_in_every_grad_mode(name, mode):
    with mode():
        (ours, found), (theirs, expected) = (
            take(*PRIMALS[name](X.clone().requires_grad_())) for take in (by_us, by_torch)
        )
    assert_close(ours, theirs, rtol=0, atol=0)
    assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for one, other in zip((*ours, *found), (*theirs, *expected), strict=True):
        assert one.requires_grad == other.requires_grad


@pytest.mark.parametrize("name", ["two leaves", "the same twice", "one made from the other", "one that needs none"])
def test_second_derivatives(name):
    def second(take):
        x = X.clone().requires_grad_()
        outputs, found = take(*PRIMALS[name](x))
        return torch.autograd.grad(sum(value.square().sum() for value in (*outputs, *found)), x)

    assert_close(second(by_us), second(by_torch), rtol=1e-12, atol=1e-12)


def test_what_does_not_reach_the_outputs_has_zeros():
    a, b = X.clone().requires_grad_(), X.clone().requires_grad_()
    for use in (lambda a, b: [a.sum()], lambda a, b: [torch.zeros((), dtype=a.dtype)]):
        outputs, pull = vjp(use, a, b)
        assert_close(pull([torch.ones_like(outputs[0])])[1], torch.zeros_like(b))


@pytest.mark.parametrize("where", ["grad", "vmap", "jvp", "a dual level"])
def test_inside_transforms(where):
    def total(take):
        return lambda x: sum(value.square().sum() for value in take(x, x * 2)[1])

    def result(take):
        if where == "grad":
            return grad(total(take))(X)
        if where == "vmap":
            return torch.vmap(total(take))(torch.stack([X, -X]))
        if where == "jvp":
            return jvp(total(take), (X,), (X,))
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(X, X)
            return forward_ad.unpack_dual(total(take)(dual)).tangent

    assert_close(result(by_us), result(by_torch), rtol=1e-12, atol=1e-12)


def test_transforms_are_noticed():
    seen = []

    def note(x):
        seen.append(transformed())
        return x.sum()

    note(X)
    grad(note)(X)
    torch.vmap(note)(X.reshape(2, 3))
    assert seen == [False, True, True]


def test_an_unroll_of_plain_tensors_has_no_graph():
    """Of tensors that need no gradient, and a rule that needs none, nothing is to be remembered."""
    problem = small_problem()
    rule = LSTMRule(hidden_size=3).double().requires_grad_(False)
    params = {name: p.detach() for name, p in problem.params.items()}
    result = unroll(rule, problem.loss, params, rule.init_state(params), steps=3)
    assert not result.losses.requires_grad
    assert not any(p.requires_grad for p in result.params.values())


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
def test_hooks_on_what_is_given_are_left_alone(mode):
    x, seen = X.clone().requires_grad_(), []
    x.register_hook(lambda grad: seen.append(grad) or 2 * grad)
    with mode():
        (_, found), (_, expected) = by_us(x, x.detach() + 1), by_torch(x, x.detach() + 1)
    assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert seen == []


def test_leaves_keep_the_gradients_that_they_have():
    model = nn.Linear(3, 1)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with torch.no_grad():
        _, pull = vjp(
            lambda w, b: [functional_call(model, {"weight": w, "bias": b}, (torch.ones(2, 3),)).sum()],
            *model.parameters(),
        )
        pull([torch.ones(())])
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())
