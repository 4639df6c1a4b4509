"""What every meta-initialisation algorithm promises."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.testing import assert_close

from learned_optim import LSTMRule
from meta_init import ALGORITHMS, Batch, MetaLearner, Sinusoids, Task, maml, meta_sgd, reptile, sine_mlp
from meta_init.learner import trainable

algorithms = pytest.mark.parametrize("name", ALGORITHMS)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


# Layers on inputs of shape (N, 6, 8).
LAYERS = {
    "Tanh": nn.Tanh,
    "ReLU": nn.ReLU,
    "GELU": nn.GELU,
    "SiLU": nn.SiLU,
    "PReLU": nn.PReLU,
    "Softmax": lambda: nn.Softmax(1),
    "BatchNorm1d": lambda: nn.BatchNorm1d(6),
    "BatchNorm1d without affine": lambda: nn.BatchNorm1d(6, affine=False),
    "LayerNorm": lambda: nn.LayerNorm((6, 8)),
    "GroupNorm": lambda: nn.GroupNorm(2, 6),
    "InstanceNorm1d": lambda: nn.InstanceNorm1d(6, affine=True),
    "InstanceNorm1d with statistics": lambda: nn.InstanceNorm1d(6, track_running_stats=True),
    "RMSNorm": lambda: nn.RMSNorm(8),
    "MaxPool1d": lambda: nn.MaxPool1d(2),
    "AvgPool1d": lambda: nn.AvgPool1d(2),
    "Conv1d": lambda: nn.Conv1d(6, 4, 3),
    "ConvTranspose1d": lambda: nn.ConvTranspose1d(6, 4, 3),
    "Dropout off": lambda: nn.Dropout(0.0),
    "MultiheadAttention": Attention,
    "TransformerEncoderLayer": lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True),
}


def tasks(shape, count=3, ways=4):
    torch.manual_seed(1)
    labels = torch.arange(ways).repeat(count, 1)
    x = torch.randn(count, 3 * ways, *shape, dtype=torch.float64)
    return Task(Batch(x[:, :ways], labels), Batch(x[:, ways:], labels.repeat(1, 2)))


def network(layer):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(3, 6, 3, padding=1), LAYERS[layer](), nn.Flatten(), nn.LazyLinear(4)).double()
    model(torch.zeros(4, 3, 8, dtype=torch.float64))
    return model


def slow_maml(model, task_batch, lr, steps, first_order=False):
    """The meta-gradient by plain autograd, one task after the other."""
    start = trainable(model)
    total = 0
    for i in range(task_batch.support.y.shape[0]):
        (sx, sy), (qx, qy) = ((part.x[i], part.y[i]) for part in task_batch)
        params = start
        for _ in range(steps):
            loss = nn.functional.cross_entropy(functional_call(model, params, (sx,)), sy)
            grads = torch.autograd.grad(loss, list(params.values()), create_graph=not first_order)
            params = {k: p - lr * g for (k, p), g in zip(params.items(), grads, strict=True)}
        total = total + nn.functional.cross_entropy(functional_call(model, params, (qx,)), qy)
    loss = total / (i + 1)
    return loss, torch.autograd.grad(loss, list(start.values()))


def meta_gradient(learner, task_batch):
    loss, _ = learner.outer_loss(task_batch)
    return loss, torch.autograd.grad(loss, list(learner.parameters()))


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("strategy", ["vmap", "loop"])
def test_maml_equals_the_slow_reference_on_every_layer(layer, first_order, strategy):
    model = network(layer)
    learner = maml(model, lr=0.1, steps=2, first_order=first_order, strategy=strategy)
    ours = meta_gradient(learner, tasks((3, 8)))
    buffers = copy.deepcopy(dict(model.named_buffers()))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert_close(ours, slow_maml(model.train(), tasks((3, 8)), 0.1, 2, first_order))
    model.load_state_dict(buffers, strict=False)


class Functional(nn.Module):
    """Normalisation called by torch's own names, and an embedding with a padding row."""

    def __init__(self):
        super().__init__()
        self.rows = nn.Embedding(9, 6, padding_idx=0)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = self.rows(x).mean(dim=1)
        x = torch.tanh(torch.layer_norm(x, (6,)) + torch.group_norm(x, 2))
        x = x + torch.batch_norm(x, None, None, None, None, True, 0.1, 1e-5, False)
        return self.head(x + torch.instance_norm(x[None], None, None, None, None, True, 0.1, 1e-5, False)[0])


@pytest.mark.parametrize("strategy", ["vmap", "loop"])
def test_functions_that_vmap_gets_wrong(strategy):
    torch.manual_seed(0)
    model = Functional().double()
    batch = tasks((5,))
    numbers = Task(*(Batch(part.x.abs().mul(4).long().clamp(max=8), part.y) for part in batch))
    assert (numbers.support.x == 0).any()
    ours = meta_gradient(maml(model, lr=0.1, steps=2, strategy=strategy), numbers)
    assert_close(ours, slow_maml(model, numbers, 0.1, 2))
    assert not ours[1][0][0].any()


@algorithms
@pytest.mark.parametrize("training", [True, False])
def test_vmap_is_a_loop(name, training):
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4)).double()
    learners = [ALGORITHMS[name](model, lr=0.1, steps=2, strategy=strategy) for strategy in ("vmap", "loop")]
    learners[1].rule = learners[0].rule
    for learner in learners:
        learner.double().train(training)
    (one, one_logs), (other, other_logs) = (learner.outer_loss(tasks((5,))) for learner in learners)
    assert_close(one_logs, other_logs)
    assert set(one_logs) == {"support_loss", "query_loss_before", "query_loss", "accuracy"}
    for learner, loss in zip(learners, (one, other), strict=True):
        learner.zero_grad()
        loss.backward()
        learner.found = [p.grad.clone() for p in learner.parameters()]
    assert_close(learners[0].found, learners[1].found)
    assert_close(learners[0].evaluate(tasks((5,)), 3), learners[1].evaluate(tasks((5,)), 3))


def test_buffers_and_frozen_parameters_do_not_change_and_modes_are_kept():
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 4)).double()
    model[0].weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    learner = maml(model, lr=0.1)
    model.eval()
    assert "model.0.weight" not in dict(learner.named_parameters())
    learner.outer_loss(tasks((5,)))[0].backward()
    adapted = learner.adapt(Batch(*(part[0] for part in tasks((5,)).support)), 2)
    assert "0.weight" not in adapted.params
    assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert not model[1].training
    assert model[1].track_running_stats


@pytest.mark.parametrize("strategy", ["vmap", "loop"])
def test_dropout_draws_anew_for_each_task_in_training_and_is_off_in_evaluation(strategy):
    model = nn.Sequential(nn.Linear(5, 40), nn.Dropout(0.5), nn.Linear(40, 4)).double()
    learner = maml(model, lr=0.1, strategy=strategy)
    one = tasks((5,), count=1)
    same = Task(*(Batch(part.x.expand(2, -1, -1), part.y.expand(2, -1)) for part in one))
    learner.train()
    losses = learner.evaluate(same).losses[:, 0]
    assert losses[0] != losses[1]
    learner.eval()
    losses = learner.evaluate(same).losses[:, 0]
    assert_close(losses[0], losses[1])


def test_reptile_gradient_is_theta_0_minus_theta_k():
    model = nn.Linear(5, 4).double()
    learner = reptile(model, lr=0.1, steps=3)
    batch = tasks((5,))
    loss, logs = learner.outer_loss(batch)
    loss.backward()
    ends = [learner.adapt(Batch(batch.support.x[i], batch.support.y[i])).params for i in range(3)]
    for key, p in model.named_parameters():
        assert_close(p.grad, p.detach() - torch.stack([end[key] for end in ends]).mean(dim=0))
    real = maml(model, lr=0.1, steps=3).outer_loss(batch)[0]
    assert_close(logs["query_loss"], real.detach())


@pytest.mark.parametrize("strategy", ["vmap", "loop"])
@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_reptile_with_minibatches_and_an_outer_sgd_is_the_papers_algorithm(rule, strategy):
    model = nn.Linear(5, 4).double()
    # 4 support examples for 3 steps: the first sees examples 0 and 3, the others one each.
    learner = reptile(model, lr=0.1, steps=3, rule=rule, minibatches=True, strategy=strategy)
    batch = tasks((5,))
    ends = []
    for i in range(3):
        own = copy.deepcopy(model)
        inner = {
            "sgd": lambda own=own: torch.optim.SGD(own.parameters(), lr=0.1),
            "adam": lambda own=own: torch.optim.Adam(own.parameters(), lr=0.1, betas=(0.0, 0.999)),
        }[rule]()
        for seen in ([0, 3], [1], [2]):
            inner.zero_grad()
            nn.functional.cross_entropy(own(batch.support.x[i][seen]), batch.support.y[i][seen]).backward()
            inner.step()
        ends.append([p.detach().clone() for p in own.parameters()])
    start = [p.detach().clone() for p in model.parameters()]
    outer = torch.optim.SGD(learner.parameters(), lr=0.7)
    learner.outer_loss(batch)[0].backward()
    outer.step()
    for k, p in enumerate(model.parameters()):
        towards = torch.stack([end[k] for end in ends]).mean(dim=0) - start[k]
        assert_close(p.detach(), start[k] + 0.7 * towards)


def test_minibatches_are_for_training_alone_and_need_an_example_each():
    learner = reptile(nn.Linear(5, 4).double(), lr=0.1, steps=3, minibatches=True)
    whole = reptile(learner.model, lr=0.1, steps=3)
    batch = tasks((5,))
    assert_close(learner.evaluate(batch).losses, whole.evaluate(batch).losses, rtol=0, atol=0)
    support = Batch(batch.support.x[0], batch.support.y[0])
    assert_close(learner.adapt(support).losses, whole.adapt(support).losses, rtol=0, atol=0)
    learner.steps = 5
    with pytest.raises(ValueError, match="5 steps cannot share out a support set of 4 examples"):
        learner.outer_loss(batch)
    with pytest.raises(ValueError, match="rule must be 'sgd' or 'adam', got 'momentum'"):
        reptile(nn.Linear(5, 4), lr=0.1, rule="momentum")


@algorithms
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_adapt_and_evaluate_agree_in_every_grad_mode(name, mode):
    torch.manual_seed(0)
    learner = ALGORITHMS[name](sine_mlp(8), lr=0.01, steps=2)
    with mode():
        batch = Sinusoids().sample(2, torch.Generator().manual_seed(0))
        evaluation = learner.evaluate(batch, 4)
        for i in range(2):
            adapted = learner.adapt(Batch(batch.support.x[i], batch.support.y[i]), steps=4)
            assert adapted.losses.shape == (4,)
            error = (adapted(batch.query.x[i]) - batch.query.y[i]).square().mean()
            assert_close(error, evaluation.losses[i, 4])
            assert_close(adapted.module()(batch.query.x[i]), adapted(batch.query.x[i]))
            assert not any(value.requires_grad for value in adapted.params.values())


@pytest.mark.parametrize("layer", ["TransformerEncoderLayer", "BatchNorm1d", "Dropout off"])
@pytest.mark.parametrize("training", [True, False])
def test_ordinary_layers_adapt_in_inference_mode(layer, training):
    learner = maml(network(layer), lr=0.1, steps=3).train(training)
    batch = tasks((3, 8))
    support = Batch(batch.support.x[0], batch.support.y[0])
    expected = learner.adapt(support)
    assert expected.losses[2] < expected.losses[0]
    with torch.inference_mode():
        adapted = learner.adapt(support)
        assert_close(adapted.params, expected.params)
        assert_close(adapted(batch.query.x[0]), expected.module().train(training)(batch.query.x[0]))


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, lambda size: nn.InstanceNorm1d(size, track_running_stats=True)])
def test_norms_use_the_statistics_of_their_batch_in_evaluation_too(norm):
    learner = maml(nn.Sequential(nn.Conv1d(3, 6, 3), norm(6), nn.Flatten(), nn.Linear(36, 4)).double(), lr=0.1)
    batch = tasks((3, 8))
    in_training = learner.outer_loss(batch)[0]
    learner.eval()
    assert_close(learner.outer_loss(batch)[0], in_training)
    adapted = learner.adapt(Batch(batch.support.x[0], batch.support.y[0]))
    assert_close(adapted.module().eval()(batch.query.x[0]), adapted(batch.query.x[0]))


def test_a_list_of_tasks_of_different_sizes():
    learner = maml(nn.Linear(5, 4).double(), lr=0.1)
    first, second = tasks((5,), count=1, ways=4), tasks((5,), count=1, ways=3)
    single = [Task(*(Batch(part.x[0], part.y[0]) for part in task)) for task in (first, second)]
    together = learner.outer_loss(single)[0]
    assert_close(together, (learner.outer_loss(first)[0] + learner.outer_loss(second)[0]) / 2)


def test_inputs_may_be_tuples_and_dicts():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(5, 4, dtype=torch.float64), nn.Linear(5, 4, dtype=torch.float64)

        def forward(self, one, other):
            return self.a(one) + self.b(other)

    batch = tasks((5,))
    learner = maml(Sum(), lr=0.1)
    as_tuple = Task(*(Batch((part.x, part.x), part.y) for part in batch))
    as_dict = Task(*(Batch({"one": part.x, "other": part.x}, part.y) for part in batch))
    assert_close(learner.outer_loss(as_tuple)[0], learner.outer_loss(as_dict)[0])


def test_the_learner_holds_the_callers_model_and_recurrent_models_are_looped_over():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru, self.head = nn.GRU(5, 6, batch_first=True), nn.Linear(6, 4)

        def forward(self, x):
            return self.head(self.gru(x)[0][:, -1])

    model = Recurrent().double()
    learner = maml(model, lr=0.1)
    assert learner.model is model
    learner.outer_loss(tasks((7, 5)))[0].backward()
    assert model.gru.weight_ih_l0.grad.abs().sum() > 0
    with pytest.raises(RuntimeError, match="use strategy='loop'"):
        maml(model, lr=0.1, strategy="vmap").outer_loss(tasks((7, 5)))


def test_accuracy_only_where_there_is_one():
    batch = tasks((5,), ways=2)
    binary = nn.functional.binary_cross_entropy_with_logits
    for shape in ((), (1,)):
        model = nn.Sequential(nn.Linear(5, 1), nn.Flatten(0) if shape == () else nn.Identity()).double()
        labels = Task(*(Batch(part.x, part.y.reshape(*part.y.shape, *shape)) for part in batch))
        learner = maml(model, lr=0.1, loss=lambda prediction, y: binary(prediction, y.to(prediction)))
        assert "accuracy" not in learner.outer_loss(labels)[1]
        assert learner.evaluate(labels).accuracies is None


def test_a_query_for_a_class_without_support_is_told():
    learner, x = maml(nn.Linear(2, 3), lr=0.1), torch.zeros(2, 3, 2)
    known, asked = torch.tensor([[0, 1, 2], [0, 1, 1]]), torch.tensor([[0, 1, 2], [1, 0, 2]])
    with pytest.raises(ValueError, match="has the label 2, but its support set no example of it"):
        learner.evaluate(Task(Batch(x, known), Batch(x, asked)))
    with pytest.raises(ValueError, match="has the label 2"):
        learner.evaluate([Task(Batch(x[1], known[1]), Batch(x[1], asked[1]))])
    assert learner.evaluate(Task(Batch(x, known), Batch(x, known))).losses.shape == (2, 2)


def test_an_error_of_the_model_is_told_as_it_is():
    with pytest.raises(RuntimeError, match="mat1 and mat2") as caught:
        maml(nn.Linear(6, 4).double(), lr=0.1).outer_loss(tasks((5,)))
    assert "strategy" not in str(caught.value)


def test_a_module_exported_in_inference_mode_can_be_trained_further():
    learner = maml(nn.Linear(5, 4).double(), lr=0.1)
    batch = tasks((5,))
    with torch.inference_mode():
        module = learner.adapt(Batch(batch.support.x[0], batch.support.y[0])).module()
    module(batch.query.x[0].clone()).sum().backward()
    assert module.weight.grad is not None


def test_freezing_a_learner_can_be_undone():
    learner = maml(nn.Linear(5, 4), lr=0.1)
    assert not list(learner.requires_grad_(False).parameters())
    assert len(list(learner.requires_grad_(True).parameters())) == 2


def test_a_learned_optimizer_learns_together_with_the_initialisation():
    torch.manual_seed(0)
    learner = MetaLearner(nn.Linear(5, 4).double(), LSTMRule("moments").double(), steps=2)
    learner.outer_loss(tasks((5,)))[0].backward()
    assert all(bool(torch.isfinite(p.grad).all()) and p.grad.abs().sum() > 0 for p in learner.parameters())


@algorithms
def test_a_few_hundred_steps_learn_to_adapt(name):
    torch.manual_seed(0)
    # Reptile's surrogate is a small number; its own learning rate is near 1, here with Adam much larger than MAML's.
    learner = ALGORITHMS[name](sine_mlp(), lr=0.01, steps=1 if name != "reptile" else 5)
    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    source = Sinusoids("meta_sgd")
    fresh = source.sample(200, torch.Generator().manual_seed(1))
    untrained = learner.evaluate(fresh, 5).losses.mean(dim=0)
    for _ in range(150):
        loss, _ = learner.outer_loss(source.sample(10, generator))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    at = 5 if name == "reptile" else 1
    trained = learner.evaluate(fresh, at).losses.mean(dim=0)
    assert trained[at] < untrained[at]
    assert trained[at] < 0.95 * trained[0]


def test_meta_sgd_draws_its_rates_from_the_range():
    rates = torch.cat([rate.flatten() for rate in meta_sgd(sine_mlp(), lr=(0.005, 0.1)).rule.rates])
    assert 0.005 <= rates.min() < 0.01
    assert 0.095 < rates.max() <= 0.1


CHOICES = {
    "several tasks": (lambda: nn.Linear(4, 2), (3, 5, 4), True),
    "one task": (lambda: nn.Linear(4, 2), (1, 5, 4), False),
    "few images": (lambda: nn.Conv2d(1, 2, 3), (3, 32, 1, 8, 8), True),
    "many images": (lambda: nn.Conv2d(1, 2, 3), (3, 33, 1, 8, 8), False),
    "recurrent": (lambda: nn.GRU(4, 2), (3, 5, 4), False),
    "wide": (lambda: nn.Linear(1000, 501), (3, 5, 1000), False),
    "wide and frozen": (lambda: nn.Sequential(nn.Linear(1000, 501).requires_grad_(False), nn.Linear(501, 2)),
                        (3, 5, 1000), True),
}  # fmt: skip


@pytest.mark.parametrize("name", CHOICES)
def test_auto_batches_tasks_where_a_loop_is_not_faster(name):
    make, shape, batched = CHOICES[name]
    part = Batch(torch.zeros(shape), torch.zeros(shape[:2], dtype=torch.long))
    assert maml(make(), lr=0.1)._vectorised(Task(part, part)) is batched
