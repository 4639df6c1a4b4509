"""A few kills of the many that ``python -m tests.kill`` makes, and that damage would not go unseen."""

import pytest
import torch

from tests.kill import harness
from tests.kill.runs import SAVE_EVERY


@pytest.mark.parametrize("kind", ["learn-optimizer", "train"])
def test_a_killed_run_ends_like_one_that_never_was(kind, tmp_path):
    outcome = harness.torture(kind, 1, steps=60, seed=0, folder=tmp_path)
    assert outcome.kills == 1


CONTENT = {"state_dict": {"w": torch.ones(100)}, "optimizer_states": [], "loops": {}, "callbacks": {}}


def saved(path, step=SAVE_EVERY, **changes):
    path.parent.mkdir(exist_ok=True)
    torch.save(CONTENT | {"global_step": step} | changes, path)
    return path


def test_whole_files_pass(tmp_path):
    saved(tmp_path / "last.ckpt")
    saved(tmp_path / f"step={SAVE_EVERY}.ckpt")
    saved(tmp_path / f"step={SAVE_EVERY}-v1.ckpt")
    assert harness.checked(tmp_path) == dict.fromkeys(["last.ckpt", "step=2-v1.ckpt", "step=2.ckpt"], 2)


DAMAGE = {
    "half of it": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "nothing": lambda path: path.write_bytes(b""),
    "a byte": lambda path: path.write_bytes(path.read_bytes().replace(torch.ones(100).numpy().tobytes(), bytes(400))),
    "its end": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "other step": lambda path: saved(path, step=3 * SAVE_EVERY),
    "step between": lambda path: saved(path, step=SAVE_EVERY + 1),
    "dangling": lambda path: (path.unlink(), path.symlink_to("nowhere")),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_seen(kind, tmp_path):
    DAMAGE[kind](saved(tmp_path / f"step={SAVE_EVERY}.ckpt"))
    with pytest.raises(harness.Failed):
        harness.checked(tmp_path)
