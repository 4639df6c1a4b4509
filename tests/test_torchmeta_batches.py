"""Dicts of torchmeta's layout as tasks, without torchmeta. The real package: tests/torchmeta."""

import importlib.util
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from meta_init import Batch, Task, maml, sine_mlp
from meta_init.baselines import Pretrained, pretrained_on_all, prototypical
from meta_init.tasks import as_tasks
from meta_init.torchmeta_bridge import TorchmetaLoader, import_torchmeta, to_task

ROOT = Path(__file__).parent.parent


def pair(examples, dtype=torch.float64):
    return [torch.randn(4, examples, 1, dtype=dtype), torch.randn(4, examples, 1, dtype=dtype)]


def test_a_dict_becomes_stacked_tasks_of_the_default_dtype():
    batch = OrderedDict(train=pair(10), test=pair(15))
    tasks = as_tasks(batch)
    assert isinstance(tasks, Task)
    assert isinstance(tasks.support, Batch)
    assert tasks.query.x.shape == (4, 15, 1)
    assert {leaf.dtype for part in tasks for leaf in part} == {torch.float32}
    torch.testing.assert_close(tasks.support.y, batch["train"][1].float(), rtol=0, atol=0)
    loss, _ = maml(sine_mlp(), lr=0.01).outer_loss(tasks)
    loss.backward()


def test_float64_stays_where_it_is_the_default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        assert as_tasks({"train": pair(2), "test": pair(2)}).support.x.dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_other_dtypes_and_labels_stay_as_they_are():
    x, y = torch.zeros(2, 5, 1, 28, 28, dtype=torch.bfloat16), torch.arange(5).expand(2, 5)
    tasks = as_tasks({"query": (x, y), "support": ({"image": x, "mask": x.double()}, y)})
    assert tasks.query.x is x
    assert tasks.query.y is y
    assert tasks.support.x["image"] is x
    assert tasks.support.x["mask"].dtype == torch.float32


def test_tasks_are_handed_back():
    task = Task(Batch(*pair(2)), Batch(*pair(2)))
    listed = [task, task]
    assert as_tasks(task) is task
    assert as_tasks(listed) is listed


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        ({"train": pair(2)}, ValueError, r"must have the keys 'train' and 'test', or .* got \['train'\]"),
        ({"train": pair(2), "query": pair(2)}, ValueError, r"got \['train', 'query'\]"),
        ({"train": pair(2), "val": pair(2), "test": pair(2)}, ValueError, "'val'"),
        ({"train": pair(2), "test": torch.zeros(4)}, TypeError, r"batch\['test'\] must be a pair .* got a Tensor"),
        ({"train": pair(2), "test": [*pair(2), 3]}, TypeError, r"batch\['test'\] must be a pair"),
        (
            {"train": (torch.zeros(1, 1), [("Greek/character01",)]), "test": pair(2)},
            TypeError,
            r"batch\['train'\]: its targets must be tensors, but hold 'Greek/character01'.*Categorical\(ways\)",
        ),
        ({"train": (torch.zeros(1, 1), pair(2)), "test": pair(2)}, TypeError, "targets must be one tensor, got a list"),
    ],
)
def test_what_is_no_batch_of_tasks(batch, error, message):
    with pytest.raises(error, match=message):
        as_tasks(batch)


def test_to_task_takes_batches_of_stacked_tasks_only():
    batch = {"train": pair(2), "test": pair(3)}
    assert to_task(batch, "meta").query.x.device.type == "meta"
    with pytest.raises(TypeError, match=r"to_task: a batch must be a dict .* ClassSplitter; got a list"):
        to_task(pair(2))


def test_a_loader_of_tasks_has_the_length_of_the_loader_in_it():
    loader = TorchmetaLoader([{"train": pair(2), "test": pair(3)}] * 3)
    assert len(loader) == 3
    for _ in range(2):
        assert [task.query.y.shape for task in loader] == [(4, 3, 1)] * 3


@pytest.mark.skipif(importlib.util.find_spec("torchmeta") is not None, reason="torchmeta is installed")
def test_without_torchmeta_its_import_says_what_to_install():
    with pytest.raises(ImportError, match=r"torchmeta.* cannot be found.*`pip install --no-deps torchmeta==1.8.0`"):
        import_torchmeta()


def test_nothing_else_imports_the_bridge():
    code = "import learned_optim, meta_init, lightning_modules, sys; print('meta_init.torchmeta_bridge' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


LEARNERS = {
    "maml": lambda: maml(torch.nn.Linear(3, 2), lr=0.1),
    "prototypical": lambda: prototypical(torch.nn.Linear(3, 2)),
    "pooled": lambda: pretrained_on_all(torch.nn.Linear(3, 2), lr=0.1),
    "pretrained": lambda: Pretrained(torch.nn.Identity(), size=3, classes=2),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_every_learner_takes_them_as_they_are(name):
    learner = LEARNERS[name]()
    labels = torch.arange(4).expand(2, 4) % 2
    batch = {part: (torch.rand(2, 4, 3, dtype=torch.float64), labels) for part in ("train", "test")}
    losses = [learner.outer_loss(tasks)[0].detach() for tasks in (batch, as_tasks(batch))]
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=0)
    curves = [learner.evaluate(tasks, 1).accuracies for tasks in (batch, as_tasks(batch))]
    torch.testing.assert_close(curves[0], curves[1], rtol=0, atol=0)
