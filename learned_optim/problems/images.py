"""Training a network to classify images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from learned_optim.data import IMAGE_SETS, ImageSet
from learned_optim.problems.base import Problem, ProblemFamily
from learned_optim.problems.networks import mlp
from learned_optim.types import Minibatch, Tensors


class ImageClassification(ProblemFamily):
    """Cross-entropy of a network on minibatches of images in [0, 1]; a problem is an initialisation and a batch order.

    Args:
        images: The data, or its name in `learned_optim.data.IMAGE_SETS`; batches come from its training part,
            `test_loss` uses the other.
        model: Makes a fresh network; called under a seed, so that its initialisation belongs to the problem.
        batch_size: Images per batch, drawn with replacement (the paper: 128).
    """

    def __init__(self, images: ImageSet | str, model: Callable[[], nn.Module] = mlp, *, batch_size: int = 128) -> None:
        if isinstance(images, str) and images not in IMAGE_SETS:
            raise ValueError(f"ImageClassification: unknown images {images!r}; there are {sorted(IMAGE_SETS)}")
        self.images = IMAGE_SETS[images]() if isinstance(images, str) else images
        self.model = model
        self.batch_size = batch_size
        self._skeleton = model()

    def sample(self, generator: torch.Generator) -> Problem:
        seed = int(torch.randint(2**62, (), generator=generator))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            params = {name: param.detach() for name, param in self.model().named_parameters()}
        return Problem(params, self._batch)

    def _batch(self, generator: torch.Generator) -> Minibatch:
        chosen = torch.randint(len(self.images.train_y), (self.batch_size,), generator=generator)
        return self.images.train_x[chosen].float() / 255, self.images.train_y[chosen]

    def loss(self, params: Tensors, batch: Minibatch) -> Tensor:
        x, y = batch
        return F.cross_entropy(functional_call(self._skeleton, params, (x,)), y)

    def test_loss(self, params: Tensors) -> Tensor:
        return self.loss(params, (self.images.test_x.float() / 255, self.images.test_y))
