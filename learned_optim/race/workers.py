"""Training runs one after the other, or side by side in processes."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context

import torch

from learned_optim.problems import ProblemFamily
from learned_optim.race.errors import RaceError
from learned_optim.race.families import problem_family
from learned_optim.race.training import Job, Run
from learned_optim.race.tuning import RunJobs


@contextmanager
def workers(problem: str | ProblemFamily, jobs: int) -> Iterator[RunJobs]:
    """What does jobs: this process, or ``jobs`` others with as many threads each as this one.

    Results do not depend on ``jobs``, apart from the time that they take.

    Args:
        problem: The family, or its name, by which each process makes it for itself.
        jobs: Processes.

    Raises:
        RaceError: More than one process, and a family or an optimizer that cannot be sent to another.
    """
    if jobs == 1:
        family = problem_family(problem) if isinstance(problem, str) else problem
        yield lambda todo: (job.run(family) for job in todo)
        return
    sent = _pickled(problem, "the problem family")
    with ProcessPoolExecutor(jobs, get_context("spawn"), _begin, (sent, torch.get_num_threads())) as pool:

        def run(todo: Sequence[Job]) -> Iterator[Run]:
            work = [_pickled(job, "an optimizer") for job in todo]
            return (Run(*map(torch.as_tensor, arrays)) for arrays in pool.map(_run, work))

        try:
            yield run
        finally:
            pool.shutdown(cancel_futures=True)


_family: ProblemFamily
"""In a worker: the family of its race."""


def _begin(problem: bytes, threads: int) -> None:
    global _family
    torch.set_num_threads(threads)
    given = pickle.loads(problem)
    _family = problem_family(given) if isinstance(given, str) else given


def _run(job: bytes) -> tuple[object, ...]:
    # As arrays, since sending tensors would keep a shared file open for each.
    return tuple(part.numpy() for part in pickle.loads(job).run(_family))


def _pickled(value: object, what: str) -> bytes:
    try:
        return pickle.dumps(value)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise RaceError(
            f"jobs > 1: {what} cannot be sent to another process ({error}); define it at the top level of a module"
        ) from error
