"""Checkpoint files that are whole or not there."""

from __future__ import annotations

import io
import os
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from learned_optim import write_atomically


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes Lightning's checkpoints beside their place and moves them there whole: ``Trainer(plugins=[...])``.

    Lightning itself begins them in the system's temporary folder. Where that lies on another file system than the
    checkpoints, moving is copying, and a process that is killed meanwhile leaves half a file in place of the last one.

    ``ModelCheckpoint(save_last="link")`` is not safe either way: the file behind the link goes before the link does.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """As in Lightning; remote paths are left to it."""
        if storage_options is not None or "://" in os.fspath(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_atomically(path, buffer.getvalue())
