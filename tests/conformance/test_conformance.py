"""Every check holds for every optimizer, and the document says so."""

import inspect

import pytest

from tests.conformance import table
from tests.conformance.infos import COLUMNS, OPTIMIZERS
from tests.conformance.registry import CHECKS, REASONS, check, missing_gpus
from tests.conformance.table import DOCUMENT, SECTIONS, TORCH, document, outcome, write


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", CHECKS)
def test_conformance(name, optimizer):
    if reason := missing_gpus(CHECKS[name]):
        pytest.skip(REASONS[reason])
    outcome(name, optimizer)


def test_the_document_is_what_the_checks_give():
    assert DOCUMENT.read_text() == document()


def test_every_cell_is_explained():
    text = document()
    for reason in REASONS:
        assert f"- **{reason}**: " in text
        assert f" | {reason} |" in text
    for name in COLUMNS:
        assert f"- **{name}**: " in text
    assert list(COLUMNS) == list(OPTIMIZERS)


def test_no_check_of_torch_is_missing():
    own = [name for name, function in CHECKS.items() if function.__module__ == SECTIONS["Torch's own checks"].__name__]
    assert sorted(own) == sorted(TORCH)


def test_every_check_is_described_in_one_line():
    for name, function in CHECKS.items():
        assert function.__doc__, name
        assert "\n" not in function.__doc__, name
        assert function.__doc__.endswith("."), name


def test_no_check_is_left_out_of_the_table():
    for module in SECTIONS.values():
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__ and list(inspect.signature(function).parameters) == ["info"]:
                assert name in CHECKS, name


@pytest.fixture
def few(monkeypatch, tmp_path):
    """A table of one check, and a document of its own."""
    monkeypatch.setattr(table, "DOCUMENT", tmp_path / "conformance.md")
    for name in [name for name in CHECKS if name != "errors"]:
        monkeypatch.delitem(CHECKS, name)
    return table.DOCUMENT


def failing(info):
    """It fails."""
    assert info.optim_cls.__name__ != "AdamRule"


failing.__module__ = SECTIONS["Further checks"].__name__


def test_a_run_with_a_failing_check_writes_nothing(few):
    assert write() == []
    assert "`errors`" in few.read_text()
    few.unlink()
    check(failing)
    try:
        (failure,) = write()
        assert failure.startswith("failing, AdamRule: AssertionError")
        assert not few.exists()
        with pytest.raises(AssertionError):
            document()
    finally:
        del CHECKS["failing"]
