"""Sine waves."""

import pytest
import torch
from torch.testing import assert_close

from meta_init import Sinusoids


@pytest.mark.parametrize("convention", ["maml", "meta_sgd", "lecture"])
def test_sinusoids(convention):
    source = Sinusoids(convention, shots=3, queries=5)
    one, again = (source.sample(500, torch.Generator().manual_seed(3)) for _ in range(2))
    assert_close(one, again, rtol=0, atol=0)
    assert one.support.x.shape == one.support.y.shape == (500, 3, 1)
    assert one.query.x.shape == (500, 5, 1)
    waves = source.waves(500, torch.Generator().manual_seed(3))
    assert_close(waves(one.support.x), one.support.y)
    assert 0.1 <= waves.amplitude.min() < 0.3
    assert 4.8 < waves.amplitude.max() <= 5.0
    x = torch.linspace(-5, 5, 9).reshape(1, -1, 1)
    amplitude, frequency, phase = waves
    formula = {
        "maml": lambda: amplitude * torch.sin(x - (-phase)),
        "meta_sgd": lambda: amplitude * torch.sin(frequency * x + phase),
        "lecture": lambda: amplitude * torch.sin(frequency * x),
    }[convention]()
    assert_close(waves(x), formula)
    low, high = {"maml": (1, 1), "meta_sgd": (0.8, 1.2), "lecture": (0, 3.15)}[convention]
    assert low <= frequency.min() <= frequency.max() <= high
