"""Learners in files, and their initialisation in a model of your own."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from learned_optim import CheckpointError, load_checkpoint, read_model, read_record, save_checkpoint
from meta_init.learner import MetaLearner
from meta_init.models import few_shot_conv, few_shot_mlp, sine_mlp
from meta_init.tasks import supervised_loss

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "few_shot_conv": few_shot_conv,
    "few_shot_mlp": few_shot_mlp,
    "sine_mlp": sine_mlp,
}
"""The networks that a file may ask for by name."""


def save_learner(
    path: str | os.PathLike[str],
    learner: MetaLearner,
    *,
    network: Mapping[str, Any] | None = None,
    record: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes rule and initialisation to one file, atomically; `learned_optim.load_checkpoint` reads its rule alone.

    Args:
        path: The file; conventionally ``NAME.safetensors``.
        learner: Any learner. Its loss is not written: `load_learner` takes it again.
        network: How to make the model again: ``{"name": "few_shot_conv", "ways": 5}``, a name in `NETWORKS` with its
            arguments. Without it `load_learner` has to be given a model.
        record: How it was trained: any JSON values; `learned_optim.read_record` returns it.
        dtype: Floating-point numbers are written in it: ``torch.float16`` halves the file. By default as they are.

    Raises:
        ValueError: ``network`` does not make a model with these parameters.
        TypeError: See `learned_optim.save_checkpoint`.
    """
    if network is not None:
        made = {name: tuple(value.shape) for name, value in _network(network).state_dict().items()}
        own = {name: tuple(value.shape) for name, value in learner.model.state_dict().items()}
        if made != own:
            raise ValueError(f"save_learner: network {dict(network)} does not make the learner's model")
    settings = {
        "steps": learner.steps,
        "first_order": learner.first_order,
        "adapts": learner.adapts if isinstance(learner.adapts, str) else list(learner.adapts),
        "network": None if network is None else dict(network),
    }
    rule, model = learner.rule, learner.model.state_dict()
    if dtype is not None:
        rule = copy.deepcopy(rule).to(dtype)
        model = {name: value.to(dtype) if value.is_floating_point() else value for name, value in model.items()}
    save_checkpoint(path, rule, model=model, record=dict(record or {}) | {"learner": settings})


def load_learner(
    name_or_path: str | os.PathLike[str],
    model: nn.Module | None = None,
    *,
    loss: Callable[[Any, Tensor], Tensor] = supervised_loss,
) -> MetaLearner:
    """Loads a learner: ``load_learner("omniglot-5w1s-maml").adapt(Batch(images, labels))``.

    Args:
        name_or_path: A bundled name (`learned_optim.available_checkpoints`) or a file of `save_learner`.
        model: The model to load the initialisation into; by default the network that the file names.
        loss: Of prediction and target, to adapt by.

    Raises:
        CheckpointError: There is no such checkpoint, or it is damaged or holds no learner; or see
            `load_initialisation`.
        ValueError: The file names no network and no model is given.
    """
    settings = read_record(name_or_path).get("learner")
    if not isinstance(settings, dict):
        raise CheckpointError(f"{name_or_path} holds a rule, but no learner; save_learner writes those")
    if model is None:
        if not isinstance(settings.get("network"), dict):
            raise ValueError(
                f"load_learner: {name_or_path} does not say what its network is; give model=, or network= to "
                "save_learner"
            )
        try:
            model = _network(settings["network"])
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{name_or_path}: its network cannot be made: {error}") from error
    load_initialisation(model, name_or_path)
    options = {name: settings[name] for name in ("steps", "first_order", "adapts") if name in settings}
    rule = load_checkpoint(name_or_path)
    if any(p.dtype in (torch.float16, torch.bfloat16) for p in rule.parameters()):
        rule = rule.float()  # written so to be small, not to be computed with
    try:
        return MetaLearner(model, rule, loss=loss, **options)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{name_or_path}: its learner cannot be made: {error}") from error


def load_initialisation(model: nn.Module, checkpoint: str | os.PathLike[str]) -> None:
    """Copies a learned initialisation into an ordinary model, whose parameters keep their device and type.

    With `learned_optim.MetaSGD` of the same checkpoint the model then trains as the learner adapts. Batch norm in
    evaluation mode would use running statistics, which meta-learning does not collect: leave it in training mode.

    Args:
        model: With the parameters and buffers of the model that was saved.
        checkpoint: As ``name_or_path`` of `load_learner`.

    Raises:
        CheckpointError: There is no such checkpoint, it is damaged, or it does not fit the model, which is then left
            as it was.
    """
    saved, own = read_model(checkpoint), model.state_dict()
    for name in own.keys() | saved.keys():
        shapes = [tuple(state[name].shape) if name in state else None for state in (saved, own)]
        if shapes[0] != shapes[1]:
            raise CheckpointError(
                f"{checkpoint}: {name!r} has shape {shapes[0]} in the checkpoint, {shapes[1]} in the model"
            )
    model.load_state_dict(saved)


def _network(settings: Mapping[str, Any]) -> nn.Module:
    arguments = dict(settings)
    name = arguments.pop("name", None)
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}; there are {list(NETWORKS)}")
    return NETWORKS[name](**arguments)
