"""The zoo and the synthetic corpus: every problem can be trained, no optimizer was trained on the zoo, and the page
says what the files of the races say."""

import dataclasses
import functools
import importlib.util
import math
import sys
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from torch.optim import Adam
from torch.testing import assert_close

from learned_optim import HierarchicalRNNRule, save_checkpoint
from learned_optim.problems import (
    CORPUS,
    MIXTURES,
    NORMALISED,
    PROBLEMS,
    ZOO,
    Families,
    NetworkProblems,
    ProblemFamily,
    synthetic_corpus,
)
from learned_optim.problems.zoo import adding, counts, friedman, oscillation, poisson_deviance, ratings
from learned_optim.race import BASELINES, Entry, RaceError, RaceResult, entrant, load_result, train
from learned_optim.seeds import seeded
from lightning_modules.cli import main

ROOT = Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location("zoo", ROOT / "docs" / "examples" / "zoo.py")
script = sys.modules["zoo"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)

NAMES = [*ZOO, *(f"corpus-{name}" for name in CORPUS), *MIXTURES, *NORMALISED]
ADAM = dict.fromkeys(NAMES, (0.02, 50)) | {
    "cifar10-resnet-pooled": (0.01, 90),
    "corpus-sines-relu": (0.01, 50),
    "friedman-deep": (0.02, 100),
    "friedman-huber": (0.05, 100),
    "corpus-quadratics": (0.3, 60),
    "corpus-quadratics-log": (0.3, 100),
    "corpus-quadratics-sparse": (0.3, 60),
    "corpus-bowls-any-unit": (0.3, 60),
    "ratings-factors": (0.05, 80),
    "normalised-textures": (0.003, 1100),
}
"""A learning rate and a number of steps with which losses fall."""


@functools.cache
def family(name):
    try:
        return PROBLEMS[name]()
    except FileNotFoundError as error:
        pytest.skip(f"needs data: {error}")


def inside(one):
    """A family without what is around it."""
    while hasattr(one, "family"):
        one = one.family
    return one


def kind(one):
    """Network, data and loss; for what has no network its class."""
    one = inside(one)
    if not isinstance(one, NetworkProblems):
        return type(one).__name__, None, None
    data = one.data
    if isinstance(data, partial):
        data = data.func
    data = getattr(data, "__name__", type(data).__name__) if callable(data) else one.images.name
    loss = getattr(one.loss_of, "__name__", None)
    return str(one.model()), data, loss


# Every problem


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_gradients_are_finite_and_adam_makes_them_fall(name):
    problems = family(name)
    problem = problems.sample(seeded(0))
    grads, loss = torch.func.grad_and_value(problems.loss)(problem.params, problem.batch(seeded("batch")))
    assert 0 < loss < math.inf
    assert all(torch.isfinite(grad).all() for grad in grads.values())
    rate, steps = ADAM[name]
    losses = train(problems, partial(Adam, lr=rate), steps=steps, seed=7, role="val").losses
    assert losses[-20:].mean() < 0.9 * losses[:5].mean()
    assert bool((losses >= 0).all())


def test_the_zoo_has_nothing_of_what_is_trained_on():
    assert len(set(ZOO)) == len(ZOO) >= 14
    assert not {*ZOO} & {f"corpus-{name}" for name in CORPUS}
    of_zoo, of_corpus = ([kind(family(name)) for name in names] for names in (ZOO, NAMES[len(ZOO) :]))
    assert len(set(of_zoo)) == len(ZOO)
    for (network, data, _), (known, seen, _) in product(of_zoo, of_corpus):
        assert network != known
        assert data != seen


# The data of the zoo


def test_the_sum_of_the_two_marked_numbers():
    x, y = adding(seeded(0))
    values, marks = x.unbind(dim=-1)
    assert bool((marks[:, :5].sum(dim=1) == 1).all())
    assert bool((marks[:, 5:].sum(dim=1) == 1).all())
    assert_close(y[3, 0], values[3][marks[3] == 1].sum())


def test_the_function_of_friedman_is_standardised_and_has_outliers_where_they_are_asked_for():
    _, y = friedman(seeded(0))
    assert y.mean() == pytest.approx(0, abs=0.1)
    assert y.std() == pytest.approx(1, abs=0.1)
    _, wrong = friedman(seeded(0), outliers=0.1)
    assert ((y - wrong).abs() > 1).float().mean() == pytest.approx(0.09, abs=0.03)


def test_the_others_have_the_shapes_that_they_say():
    shapes = {
        counts: ((512, 8), (512, 1)),
        ratings: ((600, 2), (600,)),
        oscillation: ((40, 1), (40, 1)),
    }
    for data, expected in shapes.items():
        assert tuple(tuple(part.shape) for part in data(seeded(0))) == expected


def test_poisson_deviance():
    y = torch.tensor([0.0, 1.0, 4.0], dtype=torch.float64)
    rates = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    expected = nn.PoissonNLLLoss(reduction="none")
    exact = torch.where(y > 0, expected(y.clamp(min=1e-300).log(), y), 0.0)
    assert_close(poisson_deviance(rates.log(), y), 2 * (expected(rates.log(), y) - exact).mean())


# The corpus


def test_the_corpus_by_names():
    families = synthetic_corpus()
    assert len(families) == len(CORPUS) == 14
    assert all(isinstance(one, ProblemFamily) for one in families)
    some = synthetic_corpus(["rosenbrock", "bowls"])
    assert isinstance(some, Families)
    assert [type(one).__name__ for one in some] == ["Rosenbrock", "Bowls"]
    with pytest.raises(ValueError, match="no family 'bowl'; there are quadratics, bowls"):
        synthetic_corpus(["bowl"])


@pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
def test_the_corpus_in_a_configuration_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["learned-optim"])
    sizes = {"horizon": 2, "window": 2, "instances": 2, "steps_per_epoch": 3, "val_instances": 2, "objective": "log"}
    config = {
        "seed_everything": 1,
        "trainer": {
            "accelerator": "cpu", "max_epochs": 1, "num_sanity_val_steps": 0, "enable_progress_bar": False,
            "enable_model_summary": False, "logger": False,
        },
        "model": {
            "class_path": "lightning_modules.LearnedOptimizerModule",
            "init_args": {
                "family": {
                    "class_path": "learned_optim.problems.synthetic_corpus",
                    "init_args": {"names": ["bowls", "classes-tanh", "bowls-noisy"]},
                },
                "rule": {"class_path": "learned_optim.LSTMRule", "init_args": {"hidden_size": 3}},
                **sizes,
            },
        },
    }  # fmt: skip
    Path("corpus.yaml").write_text(yaml.safe_dump(config))
    drawn = []
    for name in ("bowls", "classes-tanh", "bowls-noisy"):
        make = CORPUS[name]
        monkeypatch.setitem(CORPUS, name, lambda name=name, make=make: drawn.append(name) or make())
    main(["fit", "--config", "corpus.yaml"])
    assert drawn == ["bowls", "classes-tanh", "bowls-noisy"]


# Races


def test_a_hierarchical_checkpoint_takes_part_by_name(tmp_path):
    file = tmp_path / "own.safetensors"
    save_checkpoint(file, HierarchicalRNNRule())
    one = entrant(f"hierarchical:{file}")
    assert (one.name, one.hand_designed) == (f"hierarchical RNN ({file})", False)
    assert type(one.make([nn.Parameter(torch.ones(2))])).__name__ == "HierarchicalRNNOptimizer"
    with pytest.raises(RaceError, match="holds no HierarchicalRNNRule but a LSTMRule; use rule:mnist-mlp"):
        entrant("hierarchical:mnist-mlp")


def entry(name, final, *, hand_designed=True):
    curves = tuple((2.0, value) for value in final)
    lost = tuple(seed for seed, value in enumerate(final) if not math.isfinite(value))
    return Entry(name, hand_designed, {}, None, curves, final, None, lost, None, (1e-3,) * len(final))


def made_up(steps=script.STEPS, **final):
    names = {"tuned": "Adam", "adam": "Adam@0.001", "rmsprop": "RMSprop@0.01", "learned": "LSTM (default)"}
    entries = [entry(names[key], values, hand_designed=key != "learned") for key, values in final.items()]
    return RaceResult("made up", "", steps, (0, 1), (0,), 1, 1, (1, 2), {"cores": 1}, (10.0, 10.0), "Adam", (*entries,))


TWO = {
    "one": made_up(tuned=(1.0, 1.0), adam=(2.0, 2.0), rmsprop=(4.0, 0.25), learned=(0.5, 2.0)),
    "two": made_up(tuned=(1.0, 0.1), adam=(2.0, 2.0), rmsprop=(0.5, 0.5), learned=(4.0, math.nan)),
}


def test_ratios_are_put_together_as_the_page_says():
    logs = script.logs(TWO, "LSTM (default)", "Adam")
    lost = script.CEILING * 10 / 0.1
    assert [math.exp(value) for values in logs.values() for value in values] == pytest.approx([0.5, 2, 4, lost])
    ratio, worst = script.mean_ratio(logs)
    assert ratio.mean == pytest.approx((1.0 * math.sqrt(4 * lost)) ** 0.5)
    assert worst == "two"
    half = 12.7062 * math.log(math.sqrt(4 * lost)) / 2  # Student's t for two problems, times their standard error
    assert math.log(ratio.high / ratio.mean) == pytest.approx(half)
    assert script.below(script.logs(TWO, "LSTM (default)", "Adam@0.001"), each_seed=True) == (1, 1, 4)
    assert script.below(script.logs(TWO, "LSTM (default)", "Adam@0.001"), each_seed=False) == (1, 0, 2)
    assert script.logs({**TWO, "three": made_up(tuned=(1.0, 1.0))}, "LSTM (default)", "Adam").keys() == TWO.keys()


def test_losses_as_good_as_zero_are_level():
    zero = {"one": made_up(tuned=(1e-9, 1e-9), learned=(1e-4, 0.0))}
    assert script.logs(zero, "LSTM (default)", "Adam") == {"one": [0.0, 0.0]}
    assert script.below(script.logs(zero, "LSTM (default)", "Adam"), each_seed=True) == (0, 2, 2)
    assert script.lower(zero, "LSTM (default)", "Adam") == 1


def test_the_page_of_made_up_races(tmp_path):
    longer = {"one-2000": made_up(2000, tuned=(1.0, 1.0), learned=(3.0, 3.0))}
    text = script.page({"race": TWO | longer, "corpus": TWO})
    of_zoo, of_corpus = (line for line in text.splitlines() if line.startswith("| LSTM (default) |"))
    assert "| 0 of 2, 1 level | 1 of 2 | 0 of 2, 1 level | 1 of 4 runs |" in of_zoo
    assert "| 1 of 4 | 1 of 4, 1 level, 1 without floor | 1 of 4 | 1 of 4 runs |" in of_corpus
    assert "200 (two)" not in of_zoo
    assert "(two)" in of_zoo
    assert "| one-2000 | 2,000 |" in text.partition("## Other horizons")[2]
    assert "one-2000" not in text.partition("## Other horizons")[0]
    script.figure(TWO, tmp_path / "zoo.png")
    assert (tmp_path / "zoo.png").read_bytes().startswith(b"\x89PNG")


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["zoo.py", *arguments])
    threads = torch.get_num_threads()
    try:
        script.main()
    finally:
        torch.set_num_threads(threads)


def test_a_race_of_the_corpus_and_the_screening_of_a_checkpoint(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    few = {"seeds": 2, "tuning_seeds": 1}
    monkeypatch.setattr(
        script, "COLLECTIONS", {k: dataclasses.replace(one, **few) for k, one in script.COLLECTIONS.items()}
    )
    monkeypatch.setattr(script, "STEPS", 10)
    run(monkeypatch, "corpus", "bowls", "--steps", "10")
    result = load_result(script.path("corpus", "bowls", 10))
    assert (result.problem, result.seeds, result.tuning_seeds) == ("corpus-bowls", (0, 1), (0,))
    tuning = result.entry("Adam").tuning
    assert tuning.inside
    assert "| bowls | 10 |" in capsys.readouterr().out
    assert (script.RESULTS / "corpus.png").exists()
    published = (script.RESULTS / "README.md").read_bytes()

    file, name = script.path("corpus", "bowls", 10), "LSTM (default)"
    kept = dataclasses.replace(result, entries=[e for e in result.entries if e.name != name], command="as it was")
    kept.save(file)
    run(monkeypatch, "corpus", "bowls", "--steps", "10", "--only", "lstm:default")
    assert [e.final for e in load_result(file).entries] == [e.final for e in result.entries]
    assert load_result(file).command == "as it was"
    other = dataclasses.replace(result.entry("Adam"), final=(1.0, 2.0))
    dataclasses.replace(result, entries=[other if e.name == "Adam" else e for e in result.entries]).save(file)
    with pytest.raises(RuntimeError, match="bowls: tuned Adam's runs are not those in the file"):
        run(monkeypatch, "corpus", "bowls", "--steps", "10", "--only", "lstm:default")
    result.save(file)

    run(monkeypatch, "corpus", "bowls", "--steps", "10", "--validation", "--checkpoint", "quadratic")
    assert "LSTMRule (quadratic)" in capsys.readouterr().out
    assert (script.RESULTS / "README.md").read_bytes() == published
    screened = load_result(script.path("corpus", "bowls", 10, script.RUNS))
    assert not {*screened.seeds} & {*result.seeds}
    assert screened.entry("Adam").tuning == tuning  # it is not done again
    assert screened.entry("Adam").setting == tuning.best.setting
    assert screened.entry("Adam").final != result.entry("Adam").final


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["race", "mnist"], "all, or some of mnist-mlp.*got \\['mnist'\\]"),
        (["corpus"], "name problems"),
        (["race", "all", "--checkpoint", "quadratic"], "needs --validation"),
        (["race", "all", "--validation", "--only", "lstm:default"], "--only is for what is bundled"),
    ],
)
def test_what_cannot_be_raced_is_refused(arguments, message, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, *arguments)
    assert_matches(capsys.readouterr().err, message)


def assert_matches(text, pattern):
    with pytest.raises(ValueError, match=f"(?s){pattern}"):
        raise ValueError(text)


def test_the_page_is_made_from_the_files(monkeypatch):
    monkeypatch.chdir(ROOT)
    results = script.measured()
    assert all(results.values())
    assert (script.RESULTS / "README.md").read_text() == script.page(results)
    for what, among in script.COLLECTIONS.items():
        if any(result.steps == script.STEPS for result in results[what].values()):
            assert (script.RESULTS / among.picture).read_bytes().startswith(b"\x89PNG")
        for key, result in results[what].items():
            assert f"zoo.py {what}" in result.command
            tuned = result.entry("Adam")
            assert tuned.setting.keys() == BASELINES["adam"].ladders.keys()
            assert tuned.tuning.inside, key
            assert (len(result.seeds), len(result.tuning_seeds)) == (among.seeds, among.tuning_seeds)
            assert not {*result.seeds} & {*script.VALIDATION}
