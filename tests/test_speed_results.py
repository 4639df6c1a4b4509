"""The published measurements of speed: the page says what the files say, and what is measured computes the same."""

import json
import math
from pathlib import Path

import pytest
import torch

from meta_init import maml
from tests.benchmarks import curves
from tests.benchmarks.__main__ import FOLDER, main
from tests.benchmarks.measuring import (
    Bar,
    Contender,
    Group,
    Missing,
    Setup,
    Timed,
    measured,
    peak_growth,
    quartiles,
    ratio,
)
from tests.benchmarks.meta_gradients import conv, plain, sine
from tests.benchmarks.page import load, page
from tests.benchmarks.registry import BENCHMARKS

ROOT = Path(__file__).parent.parent
QUICK = Setup(quick=True, peers=False)
MACHINE = {"chip": "a chip", "cores": 2, "threads": 2, "python": "3.11", "torch": "2.13"}


def unmeasured(contender):
    raise AssertionError("a quick run measures no memory")


def test_the_published_page_is_made_from_the_files():
    measurements = load(ROOT / FOLDER)
    assert measurements
    assert (ROOT / FOLDER / "README.md").read_text() == page(measurements)
    assert all("--quick" not in one["command"] for one in measurements.values())


def test_a_page_is_made_from_files(tmp_path):
    rows = {
        "higher": {"first_call": 0.5, "difference": 0.0, "rounds": [0.2, 0.1, 0.3], "peak": 2**20},
        "ours, compiled": {"first_call": 12.0, "difference": 2e-8, "rounds": [0.001, 0.002]},
    }
    group = {"reference": "higher", "rows": rows, "missing": {"JAX": "No module named 'jax'"}}
    content = {"command": "the command", "machine": MACHINE, "groups": {"meta-gradient": group}, "facts": {}}
    (tmp_path / "sine-1.json").write_text(json.dumps(content))
    main(["--page", "--out", str(tmp_path)])
    lines = (tmp_path / "README.md").read_text().splitlines()
    assert "| *higher* | 200 ms (150 ms to 250 ms) | 3 | 1 | 500 ms | 0e+00 | 1.0 MiB |" in lines
    assert "| ours, compiled | 1.5 ms (1.25 ms to 1.75 ms) | 2 | 0.0125 | 12 s | 2e-08 |  |" in lines
    assert "| [sine-1](#sine-1): ours, compiled, times faster than higher | 125 | at least 50 | yes |" in lines
    assert "| [sine-1](#sine-1): time of ours, compiled, over JAX | - | at most 1.1 | not measured |" in lines
    assert "JAX did not take part: No module named 'jax'." in lines
    assert "`the command`; a chip, 2 cores, 2 threads, Python 3.11, torch 2.13." in lines


def test_bars_and_rounds():
    assert Bar("", 1.1, 1.1).met
    assert Bar("", 1.2, 1.1).met is False
    assert Bar("", 60, 50, at_most=False).met
    assert Bar("", None, 50).met is None
    assert quartiles([1.0]) == (1.0, 1.0, 1.0)
    group = {"rows": {"a": {"rounds": [1.0, 3.0, 9.0]}, "b": {"rounds": [1.0, 2.0]}}}
    assert ratio(group, "a", "b") == 1.25
    assert ratio(group, "a", "c") is None


def test_contenders_must_agree_and_may_be_missing():
    def absent():
        raise Missing("it is not there")

    one, other = (Contender(str(x), lambda x=x: lambda: Timed(7.0, [torch.tensor([x, 1.0])])) for x in (1.0, 1.5))
    found = measured(Group([one, Contender("absent", absent)]), QUICK, peak=unmeasured)
    assert found["rows"]["1.0"]["rounds"] == [7.0]
    assert found["missing"] == {"absent": "it is not there"}
    with pytest.raises(ValueError, match=r"1.5 does not compute what the others do: it is off by 0.5"):
        measured(Group([one, other]), QUICK, peak=unmeasured)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_runs_and_its_contenders_agree(name):
    benchmark = BENCHMARKS[name]
    groups = {title: measured(group, QUICK, peak=unmeasured) for title, group in benchmark.groups(QUICK).items()}
    rows = [row for group in groups.values() for row in group["rows"].values()]
    assert rows
    assert all(row["rounds"][0] > 0 for row in rows)
    assert all(row.get("difference", 0.0) <= 1e-5 for row in rows)
    facts = benchmark.facts(QUICK)
    page({name: {"command": "", "machine": MACHINE, "groups": groups, "facts": facts}})


@pytest.mark.parametrize("problem", [sine, conv])
def test_our_meta_gradient_is_the_plain_one(problem):
    expected = plain(problem(tasks=2, steps=2))()
    ours = problem(tasks=2, steps=2)
    maml(ours.model, lr=ours.lr, steps=2).outer_loss(ours.tasks)[0].backward()
    largest = max(float(grad.abs().max()) for grad in expected)
    for param, grad in zip(ours.model.parameters(), expected, strict=True):
        torch.testing.assert_close(param.grad, grad, rtol=0, atol=1e-5 * largest)


def test_the_peak_of_a_call_is_what_it_holds_at_once():
    def call():
        bytearray(b"1") * (64 << 20)

    try:
        growth = peak_growth(lambda: call)
    except Missing as error:
        pytest.skip(str(error))
    assert 60 << 20 <= growth <= 80 << 20


def test_slopes_are_those_of_powers():
    assert curves.slope([1, 10, 100], [2.0, 20.0, 200.0]) == pytest.approx(1)
    assert curves.slope([1, 2, 4, 8], [math.sqrt(x) for x in (1, 2, 4, 8)]) == pytest.approx(0.5)
    assert curves.slope([1], [1.0]) is None


def test_curves_are_drawn(tmp_path):
    groups = {title: {"rows": {"1": {"rounds": [1.0]}, "10": {"rounds": [5.0]}}} for title in curves.POINTS}
    curves.draw(groups, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
