"""Classes, their division, and the episodes drawn from them."""

import zipfile

import pytest
import torch
from torch.testing import assert_close

from learned_optim import data_root
from meta_init import Batch, Classes, Episodes, few_shot_conv, few_shot_mlp, maml, omniglot, split_classes

COUNTS = [4, 6, 5, 4, 9]
NAMES = ["a", "b", "c", "d", "e"]


def numbered(**options):
    """Images of 2 x 2 pixels that tell their class and their number, and which corner is which."""
    x = torch.tensor([[[i, j], [0, 200]] for i, count in enumerate(COUNTS) for j in range(count)], dtype=torch.uint8)
    return Classes("numbered", x, NAMES, COUNTS, **options)


def drawn(count=200, **options):
    options = {"ways": 3, "shots": 1, "queries": 2, "scale": 1.0} | options
    return Episodes(numbered(), **options).sample(count, torch.Generator().manual_seed(0))


def test_a_task_has_different_classes_and_different_examples():
    task = drawn()
    assert task.support.x.shape == (200, 3, 2, 2)
    assert task.query.x.shape == (200, 6, 2, 2)
    assert_close(task.support.y[7], torch.tensor([0, 1, 2]))
    assert_close(task.query.y[7], torch.tensor([0, 0, 1, 1, 2, 2]))
    seen = set()
    for support, query in zip(task.support.x, task.query.x, strict=True):
        assert len(set(support[:, 0, 0].tolist())) == 3
        for way in range(3):
            examples = [support[way], *query[2 * way : 2 * way + 2]]
            assert len({float(x[0, 0]) for x in examples}) == 1
            assert len({float(x[0, 1]) for x in examples}) == 3
            seen |= {(int(x[0, 0]), int(x[0, 1])) for x in examples}
    assert seen == {(i, j) for i, count in enumerate(COUNTS) for j in range(count)}  # every example, and no other


def test_the_same_generator_draws_the_same_tasks():
    assert_close(drawn().query.x, drawn().query.x, rtol=0, atol=0)
    assert not torch.equal(drawn(10).query.x, drawn(200).query.x[:10])


def test_bytes_become_shares_and_floats_stay():
    assert float(drawn(scale=None).support.x.max()) == pytest.approx(200 / 255)
    floats = Classes("floats", torch.full((4, 3), 7.0), ["a", "b"], [2, 2])
    assert Episodes(floats, ways=2).sample(1, torch.Generator()).support.x.max() == 7


def corner(x):
    """Where the 200 is: how often the image was turned."""
    return [[(1, 1), (0, 1), (0, 0), (1, 0)].index(tuple((image == 200).nonzero()[0].tolist())) for image in x]


def test_views_turn_each_class_of_a_task_as_a_whole():
    task = drawn(rotations="view")
    turns = [corner(x) for x in task.support.x]
    assert [corner(x)[::2] for x in task.query.x] == turns == [corner(x)[1::2] for x in task.query.x]
    assert {turn for row in turns for turn in row} == {0, 1, 2, 3}


def test_rotated_classes_are_four_times_as_many():
    task = drawn(ways=20, rotations="class")
    for support in task.support.x:
        labels = [int(image.rot90(-turn)[0, 0]) for image, turn in zip(support, corner(support), strict=True)]
        assert sorted(zip(labels, corner(support), strict=True)) == [(i, turn) for i in range(5) for turn in range(4)]


@pytest.mark.parametrize("seed", [0, None])
def test_parts_are_disjoint(seed):
    parts = split_classes(numbered(), {"train": 2, "val": ["d"], "test": 2}, seed=seed)
    assert parts["val"].names == ("d",)
    assert sorted(name for part in parts.values() for name in part.names) == NAMES
    for part in parts.values():
        for name, start, count in zip(part.names, part.starts, part.counts, strict=True):
            assert set(part.x[start : start + count, 0, 0].tolist()) == {NAMES.index(name)}
    if seed is None:
        assert parts["train"].names == ("a", "b")


BAD = {
    "ways": (lambda: Episodes(numbered(), ways=6), "6 ways, but numbered has 5 classes"),
    "shots": (lambda: Episodes(numbered(), shots=3, queries=2), "class 'a' of numbered has only 4"),
    "counts": (lambda: Episodes(numbered(), shots=0), "must be >= 1, got 5, 0 and 0"),
    "rotations": (lambda: Episodes(numbered(), rotations="some"), "unknown rotations 'some'"),
    "no task": (lambda: drawn(count=0), "count must be >= 1, got 0"),
    "no images": (
        lambda: Episodes(Classes("x", torch.zeros(4, 3), ["a", "b"], [2, 2]), ways=2, rotations="view"),
        r"only square images can be rotated, got shape \(3,\)",
    ),
    "sums": (lambda: Classes("x", torch.zeros(5), ["a"], [4]), "must add up to 5 examples; the counts add up to 4"),
    "names": (lambda: Classes("x", torch.zeros(2), ["a", "a"], [1, 1]), "several classes of the name 'a'"),
    "chosen": (lambda: numbered().select([1, 1]), r"different numbers below 5, got \[1, 1\]"),
    "too many": (lambda: split_classes(numbered(), {"train": 4, "test": 2}), "from 5 classes of numbered"),
    "overlap": (
        lambda: split_classes(numbered(), {"train": ["a", "b"], "test": ["b"]}),
        "class 'b' is in both 'train' and 'test'",
    ),
    "a share": (
        lambda: split_classes(numbered(), {"train": 0.7}),
        "part 'train' must be a number of classes or a list of names, got 0.7",
    ),
    "no names": (lambda: split_classes(numbered(), {"train": []}), r"a number of classes or a list of names, got \[\]"),
    "unknown class": (lambda: split_classes(numbered(), {"train": ["z"]}), "has no class 'z', which 'train' names"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_labels_of_any_integer_type_will_do():
    learner, batch = maml(few_shot_mlp(2), lr=0.4), Batch(torch.rand(4, 28, 28), torch.tensor([0, 1, 0, 1]))
    losses = [
        learner.adapt(batch._replace(y=batch.y.to(kind))).losses for kind in (torch.long, torch.int32, torch.uint8)
    ]
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(losses[0], losses[2])


@pytest.mark.parametrize("make", [few_shot_conv, few_shot_mlp])
def test_the_networks_learn_from_episodes(make):
    torch.manual_seed(0)
    x = torch.randint(256, (30, 28, 28), dtype=torch.uint8)
    episodes = Episodes(Classes("noise", x, [str(i) for i in range(10)], [3] * 10), queries=2)
    learner = maml(make(5), lr=0.4)
    loss, logs = learner.outer_loss(episodes.sample(2, torch.Generator().manual_seed(0)))
    loss.backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in learner.parameters())
    assert "accuracy" in logs


def test_omniglot_is_whole_and_read_once(tmp_path):
    if not (data_root() / "omniglot").is_dir():
        pytest.skip("needs Omniglot under $LEARNED_OPTIM_DATA")
    characters = omniglot(cache=tmp_path)
    assert len(characters) == 1623
    assert characters.counts.tolist() == [20] * 1623
    assert len({name.partition("/")[0] for name in characters.names}) == 50
    assert characters.x.shape == (32460, 28, 28)
    assert 0.05 < characters.x.float().mean() / 255 < 0.15  # ink on paper
    again = omniglot("/nowhere", cache=tmp_path)
    assert torch.equal(again.x, characters.x)
    assert again.names == characters.names
    (file,) = tmp_path.glob("*")
    content = bytearray(file.read_bytes())
    content[-1000] ^= 1
    file.write_bytes(content)
    assert torch.equal(omniglot(cache=tmp_path).x, characters.x)  # a damaged cache is made again


def test_omniglot_is_fetched_when_asked_to(tmp_path, monkeypatch):
    asked = []

    def fetched(url, path):
        asked.append(url.rpartition("/")[2])
        path.parent.mkdir(exist_ok=True)
        with zipfile.ZipFile(path, "w") as file:
            file.writestr(f"{path.stem}/Greek/character01/{path.stem}.png", b"no picture")

    monkeypatch.setitem(omniglot.__globals__, "download_file", fetched)
    for _ in range(2):
        with pytest.raises(ValueError, match="has 2 pictures instead of 32460"):
            omniglot(tmp_path, cache=tmp_path, download=True)
    assert asked == ["images_background.zip", "images_evaluation.zip"]


def test_omniglot_that_is_not_there_or_not_whole(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"images_background.zip is missing.*LEARNED_OPTIM_DATA"):
        omniglot(tmp_path, cache=tmp_path)
    (tmp_path / "omniglot").mkdir()
    for archive in ("images_background", "images_evaluation"):
        with zipfile.ZipFile(tmp_path / "omniglot" / f"{archive}.zip", "w") as file:
            file.writestr(f"{archive}/Greek/character01/0394_01.png", b"no picture")
    with pytest.raises(ValueError, match="has 1 pictures instead of 32460"):
        omniglot(tmp_path, cache=tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))
