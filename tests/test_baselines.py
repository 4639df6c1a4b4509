"""The learners that initialisations are compared with: each against a loop, on a small problem, and used wrongly."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from meta_init import Batch, ClassBatches, Classes, Episodes, Sinusoids, Task, conv_encoder, few_shot_conv, maml
from meta_init.baselines import (
    Embedded,
    FullContext,
    MetricLearner,
    OracleSinusoids,
    Pretrained,
    PretrainedNeighbour,
    matching,
    nearest_neighbour,
    oracle,
    pretrained_on_all,
    prototypical,
    siamese,
)

SIZE = 6
WAYS = 3


def encoder():
    """Images of 4 x 4 pixels to 6 numbers, by way of batch norm."""
    return nn.Sequential(nn.Flatten(), nn.Linear(16, SIZE), nn.BatchNorm1d(SIZE), nn.Tanh())


METRIC = {
    "prototypical": prototypical,
    "matching": matching,
    "matching, scaled": lambda encoder, **options: matching(encoder, scale=10.0, **options),
    "matching, full context": lambda encoder, **options: matching(encoder, context=FullContext(SIZE), **options),
    "siamese": lambda encoder, **options: siamese(encoder, size=SIZE, **options),
    "nearest neighbour": nearest_neighbour,
    "nearest neighbour, Euclidean": lambda encoder, **options: nearest_neighbour(
        encoder, similarity="euclidean", **options
    ),
}
LEARNERS = METRIC | {
    "pretrained": lambda encoder: Pretrained(encoder, size=SIZE, classes=WAYS, lr=0.3, steps=2),
    "pretrained, head only": lambda encoder: Pretrained(encoder, size=SIZE, classes=WAYS, steps=2, head_only=True),
    "pretrained neighbour": lambda encoder: PretrainedNeighbour(encoder, size=SIZE, classes=WAYS),
    "pretrained on all": lambda encoder: pretrained_on_all(
        nn.Sequential(*encoder, nn.Linear(SIZE, WAYS)), lr=0.3, steps=2
    ),
}
metric = pytest.mark.parametrize("name", METRIC)
learners = pytest.mark.parametrize("name", LEARNERS)
both_statistics = pytest.mark.parametrize("statistics", ["running", "episode"])


def made(name, **options):
    torch.manual_seed(0)
    return LEARNERS[name](encoder(), **options).double()


def templates(classes=20, examples=12):
    """Classes of random pictures, examples of which differ by noise that leaves them apart."""
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(classes, 1, 4, 4, generator=generator)
    x = pictures + 0.8 * torch.randn(classes, examples, 4, 4, generator=generator)
    return Classes("templates", x.flatten(0, 1), [str(i) for i in range(classes)], [examples] * classes)


def episodes(count=4, shots=2, queries=3):
    tasks = Episodes(templates(), ways=WAYS, shots=shots, queries=queries).sample(
        count, torch.Generator().manual_seed(0)
    )
    (sx, sy), (qx, qy) = tasks
    mixed = torch.randperm(sy.shape[1], generator=torch.Generator().manual_seed(1))
    return Task(Batch(sx[:, mixed].double(), sy[:, mixed]), Batch(qx.double(), qy))


def single(tasks):
    return [Task(Batch(sx, sy), Batch(qx, qy)) for sx, sy, qx, qy in zip(*tasks.support, *tasks.query, strict=True)]


# Each example by itself, from the papers' formulas


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def slow_prototypical(learner, support, labels, example, target):
    logits = []
    for k in range(WAYS):
        mine = [z for z, y in zip(support, labels, strict=True) if y == k]
        prototype = sum(mine) / len(mine)
        logits.append(-float(((example - prototype) ** 2).sum()))
    total = sum(math.exp(logit) for logit in logits)
    return logits, -math.log(math.exp(logits[target]) / total)


def slow_matching(learner, support, labels, example, target, scale=1.0):
    weights = [math.exp(scale * cosine(example, z)) for z in support]
    shares = [sum(w for w, y in zip(weights, labels, strict=True) if y == k) / sum(weights) for k in range(WAYS)]
    return [math.log(share) for share in shares], -math.log(shares[target])


def slow_full_context(learner, support, labels, example, target):
    """Vinyals et al. 2016, equations 3 to 6, with the LSTM written out."""
    context = learner.compare.context

    def cell(lstm, suffix, x, h, c):
        gates = (
            getattr(lstm, f"weight_ih{suffix}") @ x
            + getattr(lstm, f"bias_ih{suffix}")
            + getattr(lstm, f"weight_hh{suffix}") @ h
            + getattr(lstm, f"bias_hh{suffix}")
        )
        i, f, g, o = gates.chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c

    seen = [z.clone() for z in support]
    for suffix, order in (("_l0", range(len(support))), ("_l0_reverse", reversed(range(len(support))))):
        h = c = torch.zeros(SIZE, dtype=torch.float64)
        for i in order:
            h, c = cell(context.over_support, suffix, support[i], h, c)
            seen[i] = seen[i] + h
    h, c = example, torch.zeros(SIZE, dtype=torch.float64)
    for _ in range(5):
        weights = [math.exp(float(h @ z)) for z in seen]
        read = sum(w / sum(weights) * z for w, z in zip(weights, seen, strict=True))
        h, c = cell(context.over_query, "", torch.cat([example, read]), h, c)
        h = h + example
    return slow_matching(learner, seen, labels, h, target)


def slow_siamese(learner, support, labels, example, target):
    weights, bias = learner.compare.weigh.weight[0], learner.compare.weigh.bias[0]
    logits = [float(sum(w * abs(a - b) for w, a, b in zip(weights, example, z, strict=True)) + bias) for z in support]
    same, other = [], []
    for logit, y in zip(logits, labels, strict=True):
        p = 1 / (1 + math.exp(-logit))
        (same if y == target else other).append(-math.log(p if y == target else 1 - p))
    # Every query example has as many pairs of each kind, so that a mean of means is the mean.
    loss = (sum(same) / len(same) + sum(other) / len(other)) / 2
    return [max(logit for logit, y in zip(logits, labels, strict=True) if y == k) for k in range(WAYS)], loss


def slow_neighbour(similarity):
    def slow(learner, support, labels, example, target):
        alike = [similarity(example, z) for z in support]
        best = [max(s for s, y in zip(alike, labels, strict=True) if y == k) for k in range(WAYS)]
        return best, -math.log(math.exp(best[target]) / sum(math.exp(b) for b in best))

    return slow


SLOW = {
    "prototypical": slow_prototypical,
    "matching": slow_matching,
    "matching, scaled": lambda *args: slow_matching(*args, scale=10.0),
    "matching, full context": slow_full_context,
    "siamese": slow_siamese,
    "nearest neighbour": slow_neighbour(cosine),
    "nearest neighbour, Euclidean": slow_neighbour(lambda a, b: -float(((a - b) ** 2).sum())),
}


def normalised(z, mean, variance):
    return torch.tanh((z - mean) / (variance + 1e-5).sqrt())


@metric
@both_statistics
@pytest.mark.parametrize("training", [True, False])
@torch.no_grad()
def test_a_metric_learner_equals_a_loop(name, statistics, training):
    learner, tasks = made(name, statistics=statistics), episodes()
    linear, norm = learner.encoder[1], learner.encoder[2]
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    parts = [[linear(task.support.x.flatten(1)), linear(task.query.x.flatten(1))] for task in single(tasks)]
    everything = torch.cat([z for pair in parts for z in pair])
    losses, right, logits = [], [], []
    for task, (support, query) in zip(single(tasks), parts, strict=True):
        if statistics == "episode":
            z = torch.cat([support, query])
            by = (z.mean(0), z.var(0, unbiased=False))
        elif training:
            by = (everything.mean(0), everything.var(0, unbiased=False))
        else:
            by = (norm.running_mean, norm.running_var)
        support, labels = normalised(support, *by), task.support.y.tolist()
        judged = [
            SLOW[name](learner, support, labels, normalised(z, *by), int(y))
            for z, y in zip(query, task.query.y, strict=True)
        ]
        losses.append(sum(loss for _, loss in judged) / len(judged))
        logits.append([one for one, _ in judged])
        best = [max(range(WAYS), key=one.__getitem__) for one, _ in judged]
        right.append(sum(b == y for b, y in zip(best, task.query.y.tolist(), strict=True)) / len(best))
    losses, right = torch.tensor(losses, dtype=torch.float64), torch.tensor(right)
    if training:
        before = norm.running_mean.clone()
        loss, logs = learner.outer_loss(tasks)
        assert_close(loss, losses.mean())
        assert_close(logs, {"query_loss": losses.mean(), "accuracy": right.mean()})
        assert torch.equal(before, norm.running_mean) == (statistics == "episode")
        return
    evaluation = learner.evaluate(tasks)
    assert_close(evaluation.losses, losses.unsqueeze(1))
    assert_close(evaluation.accuracies, right.unsqueeze(1))
    assert learner.training
    assert norm.training
    for task, expected in zip(single(tasks), logits, strict=True):
        assert_close(learner.adapt(task.support)(task.query.x), torch.tensor(expected, dtype=torch.float64))


@metric
@both_statistics
def test_gradients_are_those_of_finite_differences(name, statistics):
    learner, tasks = made(name, statistics=statistics), episodes(count=2, shots=1, queries=1)
    params = dict(learner.named_parameters())
    learner.eval()  # or the running statistics would move between two evaluations

    def loss(*values):
        return torch.func.functional_call(Outer(learner), dict(zip(names, values, strict=True)), (tasks,))

    names = [f"learner.{name}" for name in params]
    assert torch.autograd.gradcheck(loss, tuple(params.values()), fast_mode=True)


class Outer(nn.Module):
    def __init__(self, learner):
        super().__init__()
        self.learner = learner

    def forward(self, tasks):
        return self.learner.outer_loss(tasks)[0]


@metric
def test_embeddings_of_zeros_and_equal_ones_have_finite_gradients(name):
    learner = METRIC[name](nn.Sequential(nn.Flatten(), nn.Linear(16, SIZE, bias=False))).double()
    (sx, sy), (qx, qy) = episodes()
    for x in (torch.zeros_like(qx[:, :1]), sx[:, :1]):
        sx = torch.cat([x, sx[:, 1:]], 1)
        loss, _ = learner.outer_loss(Task(Batch(sx, sy), Batch(torch.cat([x, qx[:, 1:]], 1), qy)))
        loss.backward()
        gradient = learner.encoder[1].weight.grad
        assert torch.isfinite(gradient).all()
        assert gradient.abs().max() < 1e3


@learners
def test_a_list_of_tasks_is_worth_as_much_as_a_stack(name):
    learner, tasks = made(name), episodes()
    assert_close(learner.outer_loss(single(tasks)), learner.outer_loss(tasks))
    assert_close(learner.evaluate(single(tasks)), learner.evaluate(tasks))


@learners
def test_a_list_may_mix_sizes(name):
    learner = made(name)
    mixed = [*single(episodes(2)), *single(episodes(1, shots=1, queries=1))]
    learner.outer_loss(mixed)[0].backward()
    evaluation = learner.evaluate(mixed)
    assert len(evaluation.losses) == len(evaluation.accuracies) == 3
    assert_close(evaluation.losses[:2], learner.evaluate(mixed[:2]).losses)


@learners
@pytest.mark.parametrize("inference", [True, False])
def test_evaluation_has_the_shapes_of_a_meta_learner_and_no_graph(name, inference):
    learner, tasks = made(name), episodes()
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    with torch.inference_mode(inference):
        evaluations = learner.evaluate(tasks), learner.evaluate(tasks, 0), learner.evaluate(tasks, 4)
        predicted = learner.adapt(single(tasks)[1].support)(tasks.query.x[1])
    steps = [0, 0, 0] if name in METRIC or name == "pretrained neighbour" else [2, 0, 4]
    for evaluation, number in zip(evaluations, steps, strict=True):
        assert evaluation.losses.shape == evaluation.accuracies.shape == (4, number + 1)
        assert not evaluation.losses.requires_grad
    assert_close(evaluations[2].losses[:, : steps[0] + 1], evaluations[0].losses)
    accuracy = (predicted.argmax(1) == tasks.query.y[1]).float().mean()
    assert_close(accuracy, evaluations[0].accuracies[1, -1])
    assert not predicted.requires_grad
    assert_close(learner.state_dict(), before)


@metric
def test_an_evaluation_in_parts_is_that_of_the_whole(name, monkeypatch):
    learner, tasks = made(name), episodes(count=5)
    whole = learner.evaluate(tasks)
    monkeypatch.setattr("meta_init.baselines.metric._EXAMPLES_AT_ONCE", 31)
    assert_close(learner.evaluate(tasks), whole)


@metric
def test_it_learns_above_chance(name):
    learner = made(name).float()
    parts = templates(40).select(range(30)), templates(40).select(range(30, 40))
    train, test = (Episodes(part, ways=WAYS, queries=4) for part in parts)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(learner.parameters(), lr=0.01)
    losses = []
    for _ in range(150):
        loss, logs = learner.outer_loss(train.sample(8, generator))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(logs["query_loss"]))
    assert sum(losses[-10:]) < 0.95 * sum(losses[:10])
    assert learner.evaluate(test.sample(200, generator)).accuracies.mean() > 0.6  # chance is 0.33


@pytest.mark.parametrize("head_only", [True, False])
def test_pretraining_and_fine_tuning_learn_above_chance(head_only):
    torch.manual_seed(0)
    train, test = templates(40).select(range(30)), templates(40).select(range(30, 40))
    source, generator = ClassBatches(train, size=16), torch.Generator().manual_seed(0)
    learner = Pretrained(encoder(), size=SIZE, classes=source.kinds, lr=0.5, steps=5, head_only=head_only)
    optimizer = torch.optim.Adam(learner.parameters(), lr=0.02)
    for _ in range(100):
        loss, logs = learner.outer_loss(source.sample(2, generator))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert logs["accuracy"] > 0.5  # of 30 classes
    accuracies = learner.evaluate(Episodes(test, ways=WAYS, shots=3).sample(100, generator)).accuracies.mean(0)
    assert_close(accuracies[0], torch.tensor(1 / 3))  # the new layer starts at zero
    assert accuracies[-1] > 0.6


@pytest.mark.parametrize("head_only", [True, False])
def test_fine_tuning_equals_a_loop(head_only):
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(SIZE)
    learner = Pretrained(
        nn.Sequential(nn.Flatten(), nn.Linear(16, SIZE), norm, nn.Tanh()),
        size=SIZE, classes=7, lr=0.3, steps=3, head_only=head_only,
    ).double()  # fmt: skip
    norm.running_mean.uniform_(-1, 1)
    evaluation = learner.evaluate(episodes())
    for i, (support, query) in enumerate(single(episodes())):
        theta = [p.detach().clone().requires_grad_() for p in learner.encoder.parameters()]
        theta += [torch.zeros(s, dtype=torch.float64, requires_grad=True) for s in ((WAYS, SIZE), (WAYS,))]

        def logits(x, theta=theta):
            z = x.flatten(1) @ theta[0].T + theta[1]
            by = (norm.running_mean, norm.running_var) if head_only else (z.mean(0), z.var(0, unbiased=False))
            z = torch.tanh((z - by[0]) / (by[1] + 1e-5).sqrt() * theta[2] + theta[3])
            return z @ theta[4].T + theta[5]

        for k in range(4):
            assert_close(evaluation.losses[i, k], F.cross_entropy(logits(query.x), query.y).detach())
            chosen = theta[4:] if head_only else theta
            grads = torch.autograd.grad(F.cross_entropy(logits(support.x), support.y), chosen)
            if k < 3:
                for param, grad in zip(chosen, grads, strict=True):
                    param.data -= 0.3 * grad
        assert_close(learner.adapt(support)(query.x), logits(query.x).detach())


def test_a_pretrained_neighbour_trains_as_the_classifier_and_judges_by_its_features():
    learner = PretrainedNeighbour(encoder(), size=SIZE, classes=9, similarity="euclidean").double()
    classifier = Pretrained(learner.encoder, size=SIZE, classes=9).double()
    classifier.head = learner.head
    neighbour = nearest_neighbour(learner.encoder, similarity="euclidean")
    tasks = episodes()
    loss, logs = learner.outer_loss(tasks)
    expected, _ = classifier.outer_loss(tasks)
    assert_close(loss, expected)
    assert set(logs) == {"query_loss", "accuracy"}
    assert_close(learner.evaluate(tasks, 3), neighbour.evaluate(tasks))
    support, query = next(iter(single(tasks)))
    assert_close(learner.adapt(support)(query.x), neighbour.adapt(support)(query.x))


def test_pretraining_pools_all_examples_of_all_tasks():
    learner, (support, query) = made("pretrained"), episodes()
    x = torch.cat([support.x.flatten(0, 1), query.x.flatten(0, 1)])
    y = torch.cat([support.y.flatten(), query.y.flatten()])
    logits = learner.head(learner.encoder(x))
    loss, logs = learner.outer_loss(Task(support, query))
    assert_close(loss, F.cross_entropy(logits, y))
    assert_close(logs["accuracy"], (logits.argmax(1) == y).float().mean())
    assert {name.partition(".")[0] for name, p in learner.named_parameters()} == {"encoder", "head"}
    learner.head.weight.grad = None
    loss.backward()
    assert learner.head.weight.grad.abs().max() > 0


@pytest.mark.parametrize("rotations", ["none", "class"])
def test_class_batches_have_global_labels(rotations):
    counts = [4, 6, 5]
    x = torch.tensor([[[i, j], [0, 200]] for i, count in enumerate(counts) for j in range(count)], dtype=torch.uint8)
    source = ClassBatches(Classes("numbered", x, ["a", "b", "c"], counts), size=5, rotations=rotations, scale=1.0)
    assert source.kinds == (12 if rotations == "class" else 3)
    tasks = source.sample(300, torch.Generator().manual_seed(0))
    assert_close(tasks, source.sample(300, torch.Generator().manual_seed(0)), rtol=0, atol=0)
    seen = set()
    for batch in tasks:
        assert batch.x.shape == (300, 5, 2, 2)
        assert batch.y.shape == (300, 5)
        for image, label in zip(batch.x.flatten(0, 1), batch.y.flatten().tolist(), strict=True):
            upright = image.rot90(-(label // 3))
            assert (upright[0, 0], upright[1, 1]) == (label % 3, 200)
            seen.add((label, int(upright[0, 1])))
    assert seen == {(label, j) for label in range(source.kinds) for j in range(counts[label % 3])}


# Sine waves


@pytest.mark.parametrize(
    ("convention", "names"),
    [
        ("maml", ("amplitude", "phase")),
        ("lecture", ("amplitude", "frequency")),
        ("meta_sgd", ("amplitude", "frequency", "phase")),
    ],
)
def test_an_oracle_is_told_all_that_the_wave_depends_on(convention, names):
    waves = Sinusoids(convention, shots=4, queries=6)
    source = OracleSinusoids(waves)
    assert source.names == names
    assert source.inputs == 1 + len(names)
    told = source.sample(50, torch.Generator().manual_seed(2))
    plain = waves.sample(50, torch.Generator().manual_seed(2))
    fixed = {"frequency": 1.0, "phase": 0.0}
    for one, other in zip(told, plain, strict=True):
        assert_close((one.x[..., :1], one.y), (other.x, other.y), rtol=0, atol=0)
        wave = fixed | dict(zip(names, one.x[..., 1:].unbind(-1), strict=True))
        y = wave["amplitude"] * torch.sin(wave["frequency"] * one.x[..., 0] + wave["phase"])
        assert_close(one.y[..., 0], y)


def test_an_oracle_knows_what_pretraining_cannot():
    generator = torch.Generator().manual_seed(0)
    waves = Sinusoids("maml")
    results = {}
    torch.manual_seed(0)
    told = OracleSinusoids(waves)
    plain = pretrained_on_all(nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 1)), lr=0.01, steps=3)
    for name, learner, source in (("oracle", oracle(told.inputs), told), ("plain", plain, waves)):
        optimizer = torch.optim.Adam(learner.parameters(), lr=0.01)
        for _ in range(400):
            loss, logs = learner.outer_loss(source.sample(25, generator))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert set(logs) == {"query_loss"}
        results[name] = learner.evaluate(source.sample(300, generator)).losses.mean(0)
    assert_close(results["oracle"][1], results["oracle"][0])  # it does not adapt
    assert results["oracle"][0] < 0.5 * results["plain"][0]
    assert results["plain"][-1] < results["plain"][0]  # fine-tuning helps


def test_fine_tuning_of_what_was_pretrained_on_all_is_that_of_maml():
    torch.manual_seed(0)
    model, tasks = nn.Linear(1, 1), Sinusoids().sample(3, torch.Generator().manual_seed(0))
    assert_close(
        pretrained_on_all(model, lr=0.01, steps=2).evaluate(tasks), maml(model, lr=0.01, steps=2).evaluate(tasks)
    )


# Encoders


def test_encoders_give_one_vector_of_the_papers_size():
    assert conv_encoder()(torch.zeros(2, 28, 28)).shape == (2, 64)
    assert conv_encoder(size=84, channels=3, filters=8)(torch.zeros(2, 3, 84, 84)).shape == (2, 200)
    assert few_shot_conv(5)[:-1](torch.zeros(2, 28, 28)).shape == (2, 64)
    pooled = few_shot_conv(5, filters=8, size=84, channels=3, pool=True)
    assert pooled[:-1](torch.zeros(2, 3, 84, 84)).shape == (2, 200)
    assert pooled(torch.zeros(2, 3, 84, 84)).shape == (2, 5)


@pytest.mark.parametrize("encoder", [conv_encoder, lambda: few_shot_conv(5)[:-1]])
def test_encoders_learn_from_episodes(encoder):
    torch.manual_seed(0)
    x = torch.randint(256, (30, 28, 28), dtype=torch.uint8)
    source = Episodes(Classes("noise", x, [str(i) for i in range(10)], [3] * 10), queries=2)
    learner = prototypical(encoder())
    learner.outer_loss(source.sample(2, torch.Generator().manual_seed(0)))[0].backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in learner.parameters())


# Wrong use


def labelled(support, query=((0, 1, 2),), dtype=torch.int64):
    sy, qy = torch.tensor(support, dtype=dtype), torch.tensor(query * len(support))
    return Task(Batch(torch.zeros(*sy.shape, 4, 4), sy), Batch(torch.zeros(*qy.shape, 4, 4), qy))


GOOD = labelled([[0, 1, 2]])
BAD_LABELS = {
    "a class without an example": (
        labelled([[0, 1, 2], [2, 0, 0]]),
        r"tasks.support.y of task 1 has no example of label 1, but one of label 2; .* each with an example",
    ),
    "global labels": (
        labelled([[17, 5, 9]]),
        "tasks.support.y of task 0 has no example of label 0, but one of label 17",
    ),
    "a negative label": (labelled([[0, 1, -1]]), "tasks.support.y of task 0 has label -1; .* 0, ..., ways - 1"),
    "negative labels only": (labelled([[-1, -1, -2]]), "tasks.support.y of task 0 has label -2"),
    "ways that differ": (
        labelled([[0, 1, 2], [0, 1, 1]], ((0, 1, 1),)),
        "labels up to 1 in task 1 and up to 2 in task 0; stack only tasks of as many classes, or pass a list",
    ),
    "a query label out of range": (
        labelled([[0, 1, 2]], ((0, 3, 1),)),
        "tasks.query.y of task 0 has label 3, but its support set only labels 0 to 2",
    ),
    "a negative query label": (labelled([[0, 1, 2]], ((0, -1, 1),)), "tasks.query.y of task 0 has label -1"),
    "in a list": (
        [Task(*(Batch(b.x[0], b.y[0]) for b in GOOD)), Task(*(Batch(b.x[0], b.y[0] * 2) for b in GOOD))],
        r"tasks\[1\].support.y of task 0 has no example of label 1, but one of label 4",
    ),
    "labels that are no integers": (
        labelled([[0, 1, 2]], dtype=torch.float32),
        r"tasks.support.y must hold one integer label for each example, got torch.float32 of shape \(1, 3\)",
    ),
    "one-hot labels": (
        Task(Batch(GOOD.support.x, F.one_hot(GOOD.support.y)), GOOD.query),
        r"got torch.int64 of shape \(1, 3, 3\)",
    ),
    "no tensor": (
        Task(Batch({"x": GOOD.support.x}, GOOD.support.y), GOOD.query),
        "tasks.support.x is a dict; an encoder takes one tensor",
    ),
    "no task": ([], "tasks is empty"),
}


@pytest.mark.parametrize("name", ["prototypical", "pretrained"])
@pytest.mark.parametrize("case", BAD_LABELS)
def test_labels_that_make_no_task(name, case):
    tasks, message = BAD_LABELS[case]
    with pytest.raises(ValueError, match=message):
        LEARNERS[name](encoder()).evaluate(tasks)
    if name in METRIC:
        with pytest.raises(ValueError, match=message):
            LEARNERS[name](encoder()).outer_loss(tasks)


@pytest.mark.parametrize("name", ["prototypical", "pretrained"])
def test_a_support_set_that_makes_no_task(name):
    learner = LEARNERS[name](encoder())
    with pytest.raises(ValueError, match=r"^support.y of task 0 has no example of label 1"):
        learner.adapt(Batch(torch.zeros(2, 4, 4), torch.tensor([0, 2])))
    with pytest.raises(ValueError, match="support: x and y differ"):
        learner.adapt(Batch(torch.zeros(2, 4, 4), torch.tensor([0])))


def bare():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, SIZE), nn.BatchNorm1d(SIZE, track_running_stats=False))


BAD = {
    "statistics": (lambda: prototypical(encoder(), statistics="batch"), "unknown statistics 'batch'; there are"),
    "no running statistics": (
        lambda: prototypical(bare()),
        "batch norm '2' keeps no running statistics; use statistics='episode'",
    ),
    "no running statistics for features": (
        lambda: Pretrained(bare(), size=SIZE, classes=3, head_only=True),
        "batch norm '2' keeps no running statistics, which head_only=True needs",
    ),
    "similarity of features": (
        lambda: PretrainedNeighbour(encoder(), size=SIZE, classes=3, similarity="l3"),
        "unknown similarity 'l3'",
    ),
    "similarity": (lambda: nearest_neighbour(similarity="l3"), r"unknown similarity 'l3'; there are \['cosine', 'eucl"),
    "scale": (lambda: matching(encoder(), scale=0.0), "scale must be a finite number > 0, got 0.0"),
    "reads": (lambda: FullContext(4, reads=0), "reads must be >= 1, got 0"),
    "classes": (lambda: Pretrained(encoder(), size=SIZE, classes=0), "must be >= 1, got 6 and 0"),
    "lr": (lambda: Pretrained(encoder(), size=SIZE, classes=3, lr=-1.0), "lr must be .* got -1.0"),
    "steps": (lambda: Pretrained(encoder(), size=SIZE, classes=3, steps=0), "steps must be .* got 0"),
    "too many labels": (
        lambda: Pretrained(encoder(), size=SIZE, classes=2).outer_loss(GOOD),
        "labels must be integers from 0 to 1, got torch.int64 from 0 to 2; set classes=",
    ),
    "batches": (lambda: ClassBatches(templates(), size=0), "size must be >= 1, got 0"),
    "rotations": (lambda: ClassBatches(templates(), rotations="view"), "unknown rotations 'view'"),
    "no squares": (
        lambda: ClassBatches(Classes("x", torch.zeros(2, 3), ["a"], [2]), rotations="class"),
        r"only square images can be rotated, got shape \(3,\)",
    ),
    "small images": (lambda: conv_encoder(size=15), "4 blocks halve images of size 15 to nothing; size must be >= 16"),
    "small images for a classifier": (lambda: few_shot_conv(5, size=15, pool=True), "size must be >= 16"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_a_comparison_of_your_own():
    def compare(tasks: Embedded):
        return -(tasks.query.mean(-1, keepdim=True) - tasks.support.mean(-1).unsqueeze(1)).abs()

    learner = MetricLearner(nn.Flatten(), compare)
    tasks = Task(*(Batch(b.x, b.y) for b in episodes(shots=1)))
    order = Task(Batch(tasks.support.x, torch.arange(WAYS).expand(4, -1)), tasks.query)
    assert learner.outer_loss(order)[0] > 0
