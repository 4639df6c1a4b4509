"""Kills runs at random times, looks at the files that they leave, and starts them again."""

import multiprocessing
import random
import time
import zipfile
from pathlib import Path
from typing import NamedTuple

import torch

from tests.kill.runs import SAVE_EVERY, run
from tests.trees import same

# Its processes begin with everything imported, so that a new start takes no longer than a kill.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.kill.runs"])
PATIENCE = 120


class Failed(Exception):
    """A run did not survive its kills unharmed."""


class Outcome(NamedTuple):
    """What killing one kind of run came to.

    Attributes:
        kills: How often a run was killed.
        in_saving: How many of these left a file that was being written.
        between: How many fell between the two files that Lightning writes for one step.
        runs: How many runs these were, each killed several times before it could finish.
    """

    kills: int
    in_saving: int
    between: int
    runs: int


class Places:
    """Where a run has its files."""

    def __init__(self, folder: Path, temporary: Path | None) -> None:
        self.folder, self.saved = folder, folder / "saved"
        self.temporary = folder / "temporary" if temporary is None else temporary / folder.parent.name / folder.name

    def being_written(self) -> list[Path]:
        """Files that do not have their name yet."""
        return [*self.temporary.iterdir(), *self.saved.glob(".*")]


def torture(
    kind: str, kills: int, *, steps: int, seed: int, folder: Path, temporary: Path | None = None, say=print
) -> Outcome:
    """Kills runs of one kind until there have been ``kills`` kills, and lets the last run finish.

    Every second kill waits, after its random time, until a file is being written.

    Args:
        kind: A name in `KINDS`.
        kills: How many.
        steps: Of each run.
        seed: Of the times.
        folder: Where runs are kept.
        temporary: Where Lightning begins its files before it moves them; by default in ``folder``.
        say: Gets a line for each kill.

    Raises:
        Failed: A checkpoint is not whole, a run cannot go on, or its end differs from that of an undisturbed run.
    """
    rng = random.Random(f"{seed} {kind}")
    undisturbed = folder / kind / "undisturbed"
    seconds = train(kind, Places(undisturbed, temporary), steps)
    whole = torch.load(undisturbed / "final.pt", weights_only=False)
    done = in_saving = between = runs = 0
    while done < kills:
        runs += 1
        disturbed, planned = folder / kind / str(runs), kills - done
        places = Places(disturbed, temporary)
        while True:
            # On average half of the run is left when the last kill has been made.
            after = rng.uniform(0, seconds / planned) if done < kills else None
            if train(kind, places, steps, kill_after=after, in_saving=done % 2 == 1) is not None:
                break
            done += 1
            found, unfinished = checked(places.saved), places.being_written()
            in_saving += bool(unfinished)
            between += "last.ckpt" in found and max(found.values()) != found["last.ckpt"]
            for path in unfinished:
                path.unlink()
            files = ", ".join(f"{name} ({step})" if name == "last.ckpt" else name for name, step in found.items())
            when = f"after {after:.2f} s" + (" in saving" if unfinished else "")
            say(f"{kind}: kill {done} {when}; whole: {files or 'none'}")
        if not same(torch.load(disturbed / "final.pt", weights_only=False), whole):
            raise Failed(f"{kind}: run {runs} ended with other weights or optimizer states than the undisturbed one")
    return Outcome(done, in_saving, between, runs)


def train(
    kind: str, places: Places, steps: int, *, kill_after: float | None = None, in_saving: bool = False
) -> float | None:
    """Starts a run, or starts it again.

    Returns:
        The seconds from its first step to its end, or None where it was killed: ``kill_after`` seconds after the step,
        or with ``in_saving`` when it next writes a file.
    """
    ours, theirs = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=run, args=(kind, str(places.folder), str(places.temporary), steps, theirs))
    process.start()
    theirs.close()
    try:
        message = received(ours, kind)
        begin = time.monotonic()
        if message == "stepping":
            if kill_after is not None and not ours.poll(kill_after):
                while in_saving and not places.being_written() and not ours.poll(0):
                    pass
                process.kill()
                return None
            message = received(ours, kind)
        if message != "finished":
            raise Failed(f"{kind}: a run said {message!r}")
        return time.monotonic() - begin
    finally:
        process.join(PATIENCE)
        if process.is_alive():
            process.kill()
            process.join()
        ours.close()


def received(connection, kind: str) -> str:
    try:
        if connection.poll(PATIENCE):
            return connection.recv()
    except EOFError:
        raise Failed(f"{kind}: a run ended early, see its error above") from None
    raise Failed(f"{kind}: a run did nothing for {PATIENCE} s")


def checked(saved: Path) -> dict[str, int]:
    """The checkpoints in a folder with their steps, each read to its end.

    Raises:
        Failed: One of them is not whole, or not of the step that it should be of.
    """
    found = {}
    for path in sorted(saved.glob("*.ckpt")):
        try:
            with zipfile.ZipFile(path) as archive:
                bad = archive.testzip()
            content = torch.load(path, weights_only=False)
        except Exception as error:  # whatever a damaged file leads to
            raise Failed(f"{path} is not whole: {error}") from error
        if bad or not {"state_dict", "optimizer_states", "loops", "callbacks"} <= set(content):
            raise Failed(f"{path} is not whole: {bad or sorted(content)}")
        found[path.name] = step = content["global_step"]
        if step % SAVE_EVERY or path.stem.partition("-v")[0] not in ("last", f"step={step}"):
            raise Failed(f"{path} holds step {step}")
    return found
