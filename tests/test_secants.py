"""Secants: an untrained rule that has them is torch's limited-memory BFGS."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from learned_optim import LSTMOptimizer, LSTMRule
from learned_optim.secants import REACH, init_secants, quasi_newton


def quadratic(size=6):
    """Its gradient at zero is so small that torch does not scale the first step by its 1-norm, and its curvature such
    that no step is ten times as long as those before it."""
    torch.manual_seed(0)
    w = torch.eye(size, dtype=torch.float64) + 0.3 * torch.randn(size, size, dtype=torch.float64)
    y = 0.05 * torch.randn(size, dtype=torch.float64)
    return lambda theta: (w @ theta - y).square().sum()


def trained(make, function, steps, size=6):
    theta = nn.Parameter(torch.zeros(size, dtype=torch.float64))
    optimizer = make([theta])
    points = []
    for _ in range(steps):

        def closure():
            optimizer.zero_grad()
            loss = function(theta)
            loss.backward()
            return loss

        optimizer.step(closure)
        points.append(theta.detach().clone())
    return torch.stack(points)


@pytest.mark.parametrize("secants", [1, 2, 5])
def test_an_untrained_rule_is_limited_memory_bfgs(secants):
    def ours(params):
        rule = LSTMRule("plain", secants=secants, shortcut=True, output_scale=0.3).double()
        return LSTMOptimizer(params, rule=rule)

    def theirs(params):
        return torch.optim.LBFGS(params, lr=1.0, max_iter=1, history_size=secants, tolerance_grad=0.0)

    function = quadratic()
    found, expected = trained(ours, function, 12), trained(theirs, function, 12)
    assert_close(found, expected)
    assert function(found[-1]) < 1e-3 * function(torch.zeros(6, dtype=torch.float64))


def steps_of(points, slope, secants=3):
    """The directions at given points of a function with that gradient."""
    memory = init_secants(points[0], secants, dtype=points[0].dtype)
    for i, point in enumerate(points):
        directions, after = quasi_newton({"p": slope(point)}, {"p": memory}, {"p": point}, {"p": torch.tensor(i > 0)})
        memory = after["p"]
        yield directions["p"]


def test_without_usable_secants_it_is_a_step_of_length_1_at_most():
    points = torch.randn(5, 4, dtype=torch.float64)
    for point, direction in zip(points, steps_of(points, lambda p: -p), strict=True):  # concave
        assert_close(direction, point / point.norm().clamp(min=1))
    for direction in steps_of([points[0]] * 3, lambda p: p):  # nothing moves
        assert_close(direction, -points[0] / points[0].norm().clamp(min=1))


def test_a_direction_is_no_longer_than_the_reach():
    points = torch.tensor([[0.0], [1e-3]], dtype=torch.float64)
    first, second = steps_of(points, lambda p: p - 1)  # its minimum is a way of 1, a thousand times the move
    assert_close(first, torch.ones_like(first))
    assert_close(second, torch.full_like(second, REACH * 1e-3))


def test_on_a_flat_place_it_stays():
    for direction in steps_of(torch.zeros(3, 2, dtype=torch.float64), torch.zeros_like):
        assert_close(direction, torch.zeros_like(direction))
