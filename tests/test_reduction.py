"""Whether all numbers are finite, or zero, told without a look at each."""

import math

import pytest
import torch

from learned_optim.reduction import all_finite, all_zero


def tensors(**changed):
    """Of several dtypes and shapes, all zero; the first coordinate of those named is changed."""
    made = {
        "a matrix": torch.zeros(2, 3),
        "double": torch.zeros((), dtype=torch.float64),
        "half": torch.zeros(4, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 5),
    }
    for name, value in changed.items():
        made[name.replace("_", " ")].view(-1)[0] = value
    return made


@pytest.mark.parametrize("name", ["a_matrix", "double", "half"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30, -1e-30])
def test_one_number_anywhere_is_seen(name, value):
    assert bool(all_finite(tensors(**{name: value}))) == math.isfinite(value)
    assert not all_zero(tensors(**{name: value}))
    alone = {"it": tensors(**{name: value})[name.replace("_", " ")]}
    assert bool(all_finite(alone)) == math.isfinite(value)
    assert not all_zero(alone)


def test_a_double_beyond_single_precision_is_finite():
    assert all_finite(tensors(double=1e300))


@pytest.mark.parametrize("given", [tensors(), {"empty": torch.zeros(0)}], ids=["zeros", "nothing"])
def test_zeros_are_finite_and_zero(given):
    assert all_finite(given)
    assert all_zero(given)
