"""Training a network to classify images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from learned_optim.data import IMAGE_SETS, ImageSet
from learned_optim.problems.network_problems import NetworkProblems
from learned_optim.problems.networks import mlp


class ImageClassification(NetworkProblems):
    """Cross-entropy of a network on minibatches of images in [0, 1]; a problem is an initialisation and a batch order.

    With ``examples`` it is images of its own, too.

    Args:
        images: The data, or its name in `learned_optim.data.IMAGE_SETS`; batches come from its training part,
            `test_loss` uses the other.
        model: Makes a fresh network; called under a seed, so that its initialisation belongs to the problem.
        batch_size: Images per batch, drawn with replacement (the paper: 128).
        loss: Another than cross-entropy, see `NetworkProblems`; targets are labels.
        pool: Images are averaged over squares of so many pixels a side, before anything else: small problems, on which
            meta-training is cheap. The network must fit what is left.
        examples: Each problem has so many images of its own, drawn from the training part; by default all. Few images
            are soon learnt by heart: short trainings then see the low losses that long ones end with.
        start_std: See `NetworkProblems`.
        model_options: See `NetworkProblems`.

    Raises:
        ValueError: Unknown images, ``pool`` that does not divide their size, ``examples`` that there are not, and see
            `NetworkProblems`.
    """

    def __init__(
        self,
        images: ImageSet | str,
        model: Callable[[], nn.Module] = mlp,
        *,
        loss: nn.Module | Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        batch_size: int = 128,
        pool: int = 1,
        examples: int | None = None,
        start_std: float | None = None,
        model_options: dict[str, Any] | None = None,
    ) -> None:
        if isinstance(images, str) and images not in IMAGE_SETS:
            raise ValueError(f"ImageClassification: unknown images {images!r}; there are {sorted(IMAGE_SETS)}")
        self.images = _pooled(IMAGE_SETS[images]() if isinstance(images, str) else images, pool)
        there = len(self.images.train_y)
        if examples is not None and not 1 <= examples <= there:
            raise ValueError(f"ImageClassification: examples must be 1 to the {there} images there are, got {examples}")
        self.examples = examples
        super().__init__(
            model,
            (self.images.train_x, self.images.train_y) if examples is None else self._drawn,
            loss=loss,
            batch_size=batch_size,
            held_out=(self.images.test_x, self.images.test_y),
            start_std=start_std,
            model_options=model_options,
        )

    def _drawn(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randperm(len(self.images.train_y), generator=generator)[: self.examples]
        return self.images.train_x[chosen], self.images.train_y[chosen]

    def prepared(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x.float() / 255, y


def _pooled(images: ImageSet, pool: int) -> ImageSet:
    size = images.train_x.shape[-1]
    if pool < 1 or size % pool:
        raise ValueError(f"ImageClassification: pool must divide the images' size of {size}, got {pool}")
    if pool == 1:
        return images

    def pooled(x: Tensor) -> Tensor:
        squares = x.reshape(*x.shape[:-2], size // pool, pool, size // pool, pool).float()
        return squares.mean(dim=(-3, -1)).round().to(x.dtype)

    return images._replace(train_x=pooled(images.train_x), test_x=pooled(images.test_x))
