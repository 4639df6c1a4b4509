"""Data that are drawn anew for each problem, for `NetworkProblems`."""

from __future__ import annotations

import torch
from torch import Tensor


class GaussianClasses:
    """Classes as clouds of points: to be told apart by a network with ``inputs`` inputs and ``classes`` outputs.

    Args:
        inputs: Dimensions of a point.
        classes: How many.
        examples: Points in all.
        spread: Standard deviation of a class around its centre; centres are standard Gaussian.

    Raises:
        ValueError: A count or the spread makes no sense.

    Calling it with a generator returns x, shape (examples, inputs), and y, shape (examples,).

    Source: in the spirit of the classification problems on random data of Wichrowska et al. 2017, section 4.
    """

    def __init__(self, inputs: int = 10, classes: int = 3, *, examples: int = 100, spread: float = 1.0) -> None:
        if inputs < 1 or classes < 2 or examples < 1 or not spread > 0:
            raise ValueError(
                "GaussianClasses: it must be inputs >= 1, classes >= 2, examples >= 1 and spread > 0, got "
                f"{inputs}, {classes}, {examples} and {spread}"
            )
        self.inputs, self.classes, self.examples, self.spread = inputs, classes, examples, spread

    def __call__(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        centres = torch.randn(self.classes, self.inputs, generator=generator)
        y = torch.randint(self.classes, (self.examples,), generator=generator)
        return centres[y] + self.spread * torch.randn(self.examples, self.inputs, generator=generator), y


class GaussianImages:
    """Classes as clouds of square images in which neighbouring pixels are alike: amplitudes fall as 1 / frequency.

    Args:
        size: Height and width.
        classes: How many.
        colours: Of the images.
        examples: Images in all.
        spread: Standard deviation of a class around its centre, before pixels are made alike; centres are standard
            Gaussian.

    Raises:
        ValueError: A count or the spread makes no sense.

    Calling it with a generator returns x, shape (examples, colours, size, size), of mean 0 and standard deviation 1,
    and y, shape (examples,).
    """

    def __init__(
        self, size: int = 16, classes: int = 10, *, colours: int = 3, examples: int = 10000, spread: float = 20.0
    ) -> None:
        if size < 2 or classes < 2 or colours < 1 or examples < 1 or not spread > 0:
            raise ValueError(
                "GaussianImages: it must be size >= 2, classes >= 2, colours >= 1, examples >= 1 and spread > 0, got "
                f"{size}, {classes}, {colours}, {examples} and {spread}"
            )
        self.shape, self.classes, self.examples, self.spread = (colours, size, size), classes, examples, spread

    def __call__(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        centres = torch.randn(self.classes, *self.shape, generator=generator)
        y = torch.randint(self.classes, (self.examples,), generator=generator)
        x = centres[y] + self.spread * torch.randn(self.examples, *self.shape, generator=generator)
        size = self.shape[-1]
        frequency = (torch.fft.fftfreq(size)[:, None] ** 2 + torch.fft.rfftfreq(size) ** 2).sqrt()
        x = torch.fft.irfft2(torch.fft.rfft2(x) * (1 / (frequency + 1 / size)), s=(size, size))
        x = x - x.mean()
        return x / x.std(), y


class SineCurves:
    """Sums of waves, to be fitted by a network with one input and one output.

    Args:
        waves: How many are added; amplitudes and phases are uniform, frequencies up to ``fastest`` rad.
        examples: Points in all, x uniform in [-1, 1].
        noise: Standard deviation of the noise in y.

    Raises:
        ValueError: A count or size makes no sense.

    Calling it with a generator returns x and y, each of shape (examples, 1).
    """

    def __init__(self, waves: int = 2, *, fastest: float = 6.0, examples: int = 100, noise: float = 0.1) -> None:
        if waves < 1 or examples < 1 or not (fastest > 0 and noise >= 0):
            raise ValueError(
                "SineCurves: it must be waves >= 1, examples >= 1, fastest > 0 and noise >= 0, got "
                f"{waves}, {examples}, {fastest} and {noise}"
            )
        self.waves, self.fastest, self.examples, self.noise = waves, fastest, examples, noise

    def __call__(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        amplitude, frequency, phase = torch.rand(3, self.waves, generator=generator)
        x = 2 * torch.rand(self.examples, 1, generator=generator) - 1
        angle = self.fastest * frequency * x + 2 * torch.pi * phase
        y = (amplitude * torch.sin(angle)).sum(dim=1, keepdim=True)
        return x, y + self.noise * torch.randn(y.shape, generator=generator)
