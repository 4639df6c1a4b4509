"""The real torchmeta in the learners and under Lightning: ``make test-torchmeta``, in an environment of its own."""

import importlib.util
import re
import subprocess
import sys
import zipfile
from itertools import islice
from pathlib import Path

import pytest
import torch

if importlib.util.find_spec("torchmeta") is None:
    pytest.skip("needs torchmeta, in an environment of its own: make test-torchmeta", allow_module_level=True)

from learned_optim import data_root
from meta_init import few_shot_conv, few_shot_mlp, maml, meta_sgd, sine_mlp
from meta_init.torchmeta_bridge import TorchmetaLoader, import_torchmeta, to_task

torchmeta = import_torchmeta()

# Both import torchvision, which beside a CPU-only torch works only after the bridge.
import pytorch_lightning as pl  # noqa: E402
from torchmeta.datasets.helpers import omniglot  # noqa: E402
from torchmeta.toy.helpers import sinusoid  # noqa: E402
from torchmeta.transforms import ClassSplitter  # noqa: E402
from torchmeta.utils.data import BatchMetaDataLoader  # noqa: E402

from lightning_modules import MAMLModule  # noqa: E402

ROOT = Path(__file__).parent.parent.parent
LEARNERS = {"maml": maml, "meta_sgd": meta_sgd}
BATCHES = {"raw": lambda batch: batch, "task": to_task}


def waves(size=4):
    return BatchMetaDataLoader(sinusoid(shots=10, test_shots=15, num_tasks=1000, seed=0), batch_size=size)


@pytest.fixture(scope="session")
def omniglot_folder(tmp_path_factory):
    """Omniglot as torchmeta stores it, converted by torchmeta: archives that are there are not downloaded again."""
    source = data_root(None) / "omniglot"
    archives = [source / f"images_{part}.zip" for part in ("background", "evaluation")]
    if not all(archive.is_file() for archive in archives):
        pytest.skip("needs Omniglot under $LEARNED_OPTIM_DATA")
    folder = tmp_path_factory.mktemp("torchmeta")
    (folder / "omniglot").mkdir()
    for archive in archives:
        (folder / "omniglot" / archive.name).symlink_to(archive)
        with zipfile.ZipFile(archive) as content:
            content.extractall(folder / "omniglot")
    omniglot(folder, shots=1, ways=5, meta_train=True, download=True)
    return folder


def characters(folder, part="train", size=4):
    dataset = omniglot(folder, shots=1, ways=5, test_shots=2, seed=0, meta_split=part)
    return BatchMetaDataLoader(dataset, batch_size=size)


def learns_from(learner, batch):
    """One backward pass and an evaluation; hands back the evaluation."""
    loss, logs = learner.outer_loss(batch)
    loss.backward()
    grads = [param.grad for param in learner.parameters()]
    assert all(grad is not None and grad.isfinite().all() for grad in grads)
    assert any(grad.abs().sum() > 0 for grad in grads)
    evaluation = learner.evaluate(batch, steps=3)
    torch.testing.assert_close(evaluation.losses[:, 0].mean(), logs["query_loss_before"])
    return evaluation


def test_the_package_is_the_published_one():
    assert torchmeta.__version__ == "1.8.0"
    assert import_torchmeta() is torchmeta


@pytest.mark.parametrize("batches", BATCHES)
@pytest.mark.parametrize("algorithm", LEARNERS)
def test_sinusoids(algorithm, batches):
    batch = next(iter(waves()))
    assert batch["train"][0].dtype == torch.float64
    evaluation = learns_from(LEARNERS[algorithm](sine_mlp(), lr=0.01), BATCHES[batches](batch))
    assert evaluation.losses.shape == (4, 4)
    assert evaluation.losses.dtype == torch.float32
    assert evaluation.accuracies is None


@pytest.mark.parametrize("batches", BATCHES)
@pytest.mark.parametrize("algorithm", LEARNERS)
@pytest.mark.parametrize("model", [lambda: few_shot_mlp(5), lambda: few_shot_conv(5, filters=8)[1:]])
def test_omniglot(omniglot_folder, model, algorithm, batches):
    batch = next(iter(characters(omniglot_folder)))
    assert batch["test"][0].shape == (4, 10, 1, 28, 28)
    evaluation = learns_from(LEARNERS[algorithm](model(), lr=0.1), BATCHES[batches](batch))
    assert evaluation.accuracies.shape == (4, 4)


def test_omniglot_is_all_there(omniglot_folder):
    loaders = {part: characters(omniglot_folder, part) for part in ("train", "val", "test")}
    classes = {part: len(loader.dataset.dataset) // 4 for part, loader in loaders.items()}  # under four rotations each
    assert classes == {"train": 1028, "val": 172, "test": 423}
    x, y = to_task(next(iter(loaders["train"]))).support
    assert 0.02 < x.mean() < 0.2  # ink on paper
    assert y.sort().values.tolist() == [list(range(5))] * 4


def test_labels_without_numbers_are_refused(omniglot_folder):
    dataset = omniglot(omniglot_folder, shots=1, ways=5, seed=0, meta_train=True, target_transform=None)
    with pytest.raises(TypeError, match=r"targets must be tensors.*Categorical\(ways\)"):
        to_task(next(iter(BatchMetaDataLoader(dataset, batch_size=2))))


def test_a_dataset_without_a_splitter_is_refused():
    dataset = torchmeta.toy.Sinusoid(num_samples_per_task=10, num_tasks=10)
    with pytest.raises(TypeError, match="ClassSplitter; got a list"):
        to_task(next(iter(BatchMetaDataLoader(dataset, batch_size=2))))


def test_support_and_query_as_names_of_the_parts():
    dataset = ClassSplitter(
        torchmeta.toy.Sinusoid(num_samples_per_task=9, num_tasks=10), num_support_per_class=4, num_query_per_class=5
    )
    task = to_task(next(iter(BatchMetaDataLoader(dataset, batch_size=2))))
    assert (task.support.x.shape, task.query.y.shape) == ((2, 4, 1), (2, 5, 1))


class Counted(pl.Callback):
    def __init__(self):
        self.steps = 0

    def on_train_batch_end(self, *args):
        self.steps += 1


# torchmeta's loaders shuffle by default, and those of combinations must: unshuffled ones begin with the same classes.
@pytest.mark.filterwarnings("ignore:.*sampler has shuffling enabled.*")
@pytest.mark.parametrize("wrap", [lambda loader: loader, TorchmetaLoader], ids=["raw", "wrapped"])
@pytest.mark.parametrize("kind", ["sinusoid", "omniglot"])
def test_trainer(kind, wrap, request, tmp_path):
    if kind == "omniglot":
        folder = request.getfixturevalue("omniglot_folder")
        loaders = [wrap(characters(folder, part)) for part in ("train", "val")]
        module = MAMLModule(few_shot_mlp(5), algorithm="meta_sgd", lr=0.1, eval_steps=2)
    else:
        loaders = [wrap(waves()) for _ in range(2)]
        module = MAMLModule(sine_mlp(), eval_steps=2)
    before = [param.detach().clone() for param in module.parameters()]
    counted = Counted()
    trainer = pl.Trainer(
        max_steps=4, limit_val_batches=2, val_check_interval=4, num_sanity_val_steps=1, accelerator="cpu",
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path, callbacks=[counted],
    )  # fmt: skip
    trainer.fit(module, *loaders)
    assert counted.steps == 4
    assert any(not torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True))
    assert trainer.callback_metrics["val/loss"].isfinite()
    assert ("val/accuracy" in trainer.callback_metrics) == (kind == "omniglot")


def test_meta_training_on_its_waves_learns():
    torch.manual_seed(0)
    learner = maml(sine_mlp(), lr=0.01)
    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-2)
    losses = []
    for batch in islice(TorchmetaLoader(waves(10)), 100):
        optimizer.zero_grad()
        loss, _ = learner.outer_loss(batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_the_bridge_may_come_after_a_failed_import_of_lightning():
    code = """
try:
    import pytorch_lightning
except RuntimeError as error:
    assert "torchvision::nms" in str(error), error
from meta_init.torchmeta_bridge import import_torchmeta
import_torchmeta()
import pytorch_lightning, lightning_modules
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


class Response:
    url = "https://example.org/file"

    def __init__(self, kind, cookies=()):
        self.headers, self.cookies = {"content-type": kind}, dict(cookies)

    def iter_content(self, size):
        return iter([b"con", b"tent"])


def test_its_downloads_find_the_functions_that_torchvision_dropped(tmp_path, monkeypatch):
    asked = []

    class Session:
        def get(self, url, params, stream):
            asked.append(params)
            answers = {"confirmed": Response("application/zip"), None: Response("text/html", answered)}
            return answers[params.get("confirm")]

    monkeypatch.setattr("requests.Session", Session)
    answered = {"download_warning_1": "confirmed"}
    torchmeta.datasets.utils.download_file_from_google_drive("number", tmp_path, "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == b"content"
    assert asked == [{"id": "number"}, {"id": "number", "confirm": "confirmed"}]
    answered = {}
    with pytest.raises(RuntimeError, match=r"sent a page.*fetch https://example.org/file.*other.zip"):
        torchmeta.datasets.utils.download_file_from_google_drive("number", tmp_path, "other.zip")
    assert not (tmp_path / "other.zip").exists()


# Lightning tells where no TensorBoard is installed.
@pytest.mark.filterwarnings("ignore:.*tensorboardX.*")
def test_the_example_of_the_docs_runs(omniglot_folder, monkeypatch):
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "torchmeta.md").read_text(), flags=re.DOTALL)
    monkeypatch.chdir(omniglot_folder)
    namespace = {}
    exec(compile(block, "docs/torchmeta.md", "exec"), namespace)
    assert namespace["trainer"].global_step == 20
