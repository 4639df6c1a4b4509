"""Problems by name."""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

from learned_optim.problems import PROBLEMS, ProblemFamily
from learned_optim.race.errors import RaceError


def problem_family(name: str) -> ProblemFamily:
    """The family of a name.

    Args:
        name: A key of `learned_optim.problems.PROBLEMS`; or ``package.module:factory`` or ``path/to/file.py:factory``,
            where ``factory()`` returns a `ProblemFamily`, such as a subclass of it.

    Raises:
        RaceError: There is no such problem.
        FileNotFoundError: Its data are missing.
    """
    if name in PROBLEMS:
        try:
            return PROBLEMS[name]()
        except ImportError as error:
            raise RaceError(f"problem {name!r} needs a package that is not installed: {error}") from error
    place, is_factory, factory = name.rpartition(":")
    if not is_factory:
        raise RaceError(
            f"unknown problem {name!r}; there are {', '.join(PROBLEMS)}, and package.module:factory or "
            "path/to/file.py:factory for one of your own"
        )
    module = _of_file(name, Path(place)) if place.endswith(".py") else _of_package(name, place)
    make = getattr(module, factory, None)
    if not callable(make):
        raise RaceError(f"problem {name!r}: {place} has no function or class {factory!r}")
    family = make()
    if not isinstance(family, ProblemFamily):
        raise RaceError(f"problem {name!r}: {factory}() must return a ProblemFamily, got a {type(family).__name__}")
    return family


def _of_file(name: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise RaceError(f"problem {name!r}: there is no file {path}")
    module = ModuleType(f"learned_optim_race_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look for their module there
    SourceFileLoader(module.__name__, str(path)).exec_module(module)
    return module


def _of_package(name: str, module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there, and what it imports is not
        raise RaceError(f"problem {name!r}: there is no module {module!r}") from error
