"""Families of problems: what holds for all of them, and what each promises."""

import logging
import math
import re
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves, tree_map

from learned_optim import RuleState, SGDRule, unroll
from learned_optim.data import IMAGE_SETS, ImageSet
from learned_optim.problems import (
    PROBLEMS,
    Bowls,
    ConvexMix,
    GaussianClasses,
    ImageClassification,
    NetworkProblems,
    NoisyGradients,
    ProblemFamily,
    Quadratics,
    Rescaled,
    Rosenbrock,
    SineCurves,
    SparseGradients,
    Transformed,
    conv_net,
    mlp,
    recurrent,
    res_net,
    tied_mlp,
    transformer,
)
from learned_optim.seeds import seeded
from lightning_modules.cli import main

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


def pictures(size=8, colours=1, labels=3, count=30):
    generator = torch.Generator().manual_seed(0)
    shape = (count, size, size) if colours == 1 else (count, colours, size, size)
    x = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    y = torch.arange(count) % labels
    return ImageSet("pictures", x[5:], y[5:], x[:5], y[:5])


def curves(generator):
    x = torch.rand(20, 1, generator=generator)
    return x, torch.sin(6 * torch.rand(1, generator=generator) * x)


class Curves:
    """The same from a class, for configuration files."""

    def __init__(self, points: int = 20) -> None:
        self.points = points

    def __call__(self, generator):
        x, y = curves(generator)
        return x[: self.points], y[: self.points]


def curve_net(norm: nn.Module | None = None) -> nn.Module:
    return nn.Sequential(nn.Linear(1, 4), norm or nn.Identity(), nn.Tanh(), nn.Linear(4, 1))


class CurveNet(nn.Sequential):
    def __init__(self, width: int = 4) -> None:
        super().__init__(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, 1))


FIXED = curves(torch.Generator().manual_seed(3))
small_conv = partial(conv_net, 4, 5, norm=True, hidden_norm=True, size=8, colours=3, outputs=3)

SMOOTH = {
    "quadratics": lambda: Quadratics(3),
    "uniform": lambda: Quadratics(3, distribution="uniform"),
    "bowls": lambda: Bowls(3),
    "bowls, not rotated": lambda: Bowls(3, rotated=False),
    "rosenbrock": lambda: Rosenbrock(3),
    "drawn data": lambda: NetworkProblems(curve_net, curves),
    "rescaled": lambda: Rescaled(Bowls(3)),
    "rescaled at once": lambda: Rescaled(Bowls(3), coordinates=None, overall=(0.1, 10.0)),
    "convex": lambda: ConvexMix(Rosenbrock(3), extra=4),
    "convex, same coordinates": lambda: ConvexMix(NetworkProblems(curve_net, FIXED), extra=None, weight=2.0),
    **{
        f"transformed by {name}": partial(lambda name: Transformed(Bowls(3), name, scale=(0.1, 10.0)), name)
        for name in ("identity", "log", "root", "square", "asinh")
    },
    "nested": lambda: Transformed(ConvexMix(Rescaled(Quadratics(3), overall=(0.1, 10.0)), extra=2)),
}
"""Whose gradients are the derivatives of their values."""

FAMILIES = SMOOTH | {
    "drawn classes": lambda: NetworkProblems(
        partial(mlp, (4,), inputs=3, outputs=2), GaussianClasses(3, 2, examples=9), loss=F.cross_entropy, batch_size=5
    ),
    "drawn waves": lambda: NetworkProblems(curve_net, SineCurves(examples=9), batch_size=5),
    "fixed data": lambda: NetworkProblems(curve_net, FIXED, batch_size=7, loss=nn.HuberLoss(), held_out=FIXED),
    "batch norm": lambda: NetworkProblems(lambda: curve_net(nn.BatchNorm1d(4)), curves, batch_size=7),
    "batch norm, fixed statistics": lambda: NetworkProblems(lambda: curve_net(nn.BatchNorm1d(4)).eval(), curves),
    "layer norm": lambda: NetworkProblems(lambda: curve_net(nn.LayerNorm(4)), curves),
    "normal start": lambda: NetworkProblems(lambda: curve_net(nn.BatchNorm1d(4)), curves, start_std=0.1),
    "images": lambda: ImageClassification(pictures(), lambda: mlp((5,), inputs=64, outputs=3), batch_size=6),
    "few images": lambda: ImageClassification(
        pictures(), lambda: mlp((5,), inputs=64, outputs=3), batch_size=6, examples=9
    ),
    "colours": lambda: ImageClassification(pictures(colours=3), small_conv, batch_size=6),
    "residual": lambda: ImageClassification(
        pictures(colours=3), partial(res_net, 4, size=8, colours=3, outputs=3), batch_size=6
    ),
    "rows": lambda: ImageClassification(
        pictures(colours=3), partial(recurrent, 3, size=8, colours=3, outputs=3), batch_size=6
    ),
    "attention": lambda: ImageClassification(
        pictures(colours=3), partial(transformer, 4, 1, size=8, colours=3, outputs=3), batch_size=6
    ),
    "sparse": lambda: SparseGradients(NetworkProblems(curve_net, FIXED, held_out=FIXED), density=0.3),
    "noisy": lambda: NoisyGradients(Quadratics(3), std=0.5),
    "nested gradients": lambda: Rescaled(SparseGradients(NoisyGradients(Bowls(3)), density=0.5)),
}
families = pytest.mark.parametrize("name", FAMILIES)


IN_FLOAT32 = {"batch norm, fixed statistics"}
"""Whose constants would not go with parameters in float64."""


def double(tree):
    return tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, tree)


def stacked(trees):
    return tree_map(lambda *leaves: torch.stack(leaves), *trees)


def drawn(family, count=1, precise=double):
    """Parameters and a batch of several problems, in float64."""
    problems = [family.sample(seeded("problem", i)) for i in range(count)]
    return [(precise(p.params), precise(p.batch(seeded("batch", i)))) for i, p in enumerate(problems)]


def drawn_by_name(name, count=1):
    family = FAMILIES[name]()
    return family, drawn(family, count, (lambda tree: tree) if name in IN_FLOAT32 else double)


# What holds for all


@families
def test_a_problem_is_its_seed(name):
    family, again = FAMILIES[name](), FAMILIES[name]()
    before = torch.get_rng_state()
    one, same, other = (f.sample(seeded("problem", i)) for f, i in ((family, 1), (again, 1), (family, 2)))
    batches = [problem.batch(seeded("batch")) for problem in (one, same)]
    assert torch.equal(before, torch.get_rng_state())
    assert_close(one.params, same.params, rtol=0, atol=0)
    assert_close(*map(tree_leaves, batches), rtol=0, atol=0)
    assert any(not torch.equal(one.params[key], other.params[key]) for key in one.params)
    assert {key: p.shape for key, p in one.params.items()} == {key: p.shape for key, p in other.params.items()}
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in one.params.values())


@families
def test_the_loss_is_a_pure_scalar(name):
    family, ((params, batch),) = drawn_by_name(name)
    before = tree_map(torch.clone, (params, batch))
    generator = torch.get_rng_state()
    grads, loss = torch.func.grad_and_value(family.loss)(params, batch)
    assert loss.shape == ()
    assert torch.equal(loss, family.loss(params, batch))
    assert torch.equal(generator, torch.get_rng_state())
    assert_close(tree_leaves((params, batch)), tree_leaves(before), rtol=0, atol=0)
    assert all(torch.isfinite(grad).all() for grad in grads.values())
    test_loss = family.test_loss(family.sample(seeded(1)).params)
    assert test_loss is None or test_loss.shape == ()


@families
def test_problems_side_by_side_are_those_one_by_one(name):
    family, both = drawn_by_name(name, 3)
    params, batches = stacked([p for p, _ in both]), stacked([b for _, b in both])
    grads, losses = torch.vmap(torch.func.grad_and_value(family.loss))(params, batches)
    for i, one in enumerate(both):
        expected, loss = torch.func.grad_and_value(family.loss)(*one)
        assert_close(losses[i], loss)
        assert_close({key: grad[i] for key, grad in grads.items()}, expected)


@families
def test_exact_meta_gradients_side_by_side_are_those_one_by_one(name):
    """Of two steps. Fused norms would be wrong here."""
    family, both = drawn_by_name(name, 2)
    rule = SGDRule(0.1)

    def after(params, batch, log_rate):
        steps = unroll(
            lambda g, s, p: ({key: -log_rate.exp() * grad for key, grad in g.items()}, s),
            family.loss, params, rule.init_state(params), steps=2, batches=[batch, batch],
        )  # fmt: skip
        return family.loss(steps.params, batch)

    log_rate = torch.tensor(-3.0, requires_grad=True)
    params, batches = stacked([p for p, _ in both]), stacked([b for _, b in both])
    together = torch.vmap(partial(after, log_rate=log_rate))(params, batches).sum()
    with sdpa_kernel(SDPBackend.MATH):  # the fused one has no second derivative on a CPU
        apart = sum(after(*one, log_rate=log_rate) for one in both)
        assert_close(together, apart)
        assert_close(*(torch.autograd.grad(value, log_rate)[0] for value in (together, apart)))


@pytest.mark.parametrize("name", SMOOTH)
def test_gradients_are_the_derivatives_of_the_values(name):
    family = SMOOTH[name]()
    ((params, batch),) = drawn(family)
    names = list(params)
    inputs = [params[key].requires_grad_() for key in names]
    assert torch.autograd.gradcheck(lambda *p: family.loss(dict(zip(names, p, strict=True)), batch), inputs)


# Quadratics, bowls, valleys


def test_the_two_distributions_of_quadratics():
    (w, y), theta = (
        lambda p: (p.batch(torch.Generator()), p.params["theta"])
    )(Quadratics(100, distribution="uniform").sample(seeded(0)))  # fmt: skip
    for values in (w, y):
        assert values.min() >= 0
        assert values.max() < 1
    assert w.mean() == pytest.approx(0.5, abs=0.02)
    assert theta.std() == pytest.approx(0.01, rel=0.3)
    gaussian = Quadratics(100).sample(seeded(0))
    assert gaussian.batch(torch.Generator())[0].std() == pytest.approx(1, abs=0.02)


def test_bowls_have_their_condition():
    family = Bowls(5, condition=(1000.0, 1000.0))
    ((params, batch),) = drawn(family)
    hessian = torch.func.hessian(lambda theta: family.loss({"theta": theta}, batch))(params["theta"])
    curvatures = torch.linalg.eigvalsh(hessian)
    expected = torch.logspace(-3, 0, 5, dtype=torch.float64)
    assert_close(curvatures, expected, rtol=1e-4, atol=1e-6)  # the problem is drawn in float32
    assert (hessian - hessian.diag().diag()).abs().max() > 0.01
    assert family.loss({"theta": batch[1]}, batch) == 0


def test_the_valley_has_its_minimum_at_its_shift_plus_one():
    family = Rosenbrock(4, steepness=(100.0, 100.0))
    ((_, batch),) = drawn(family)
    steepness, shift = batch
    assert steepness == pytest.approx(100, rel=1e-5)
    assert family.loss({"theta": shift + 1}, batch) < 1e-20
    assert family.loss({"theta": shift}, batch) == 3


# Networks of one's own


def test_image_classification_draws_what_it_always_drew():
    images = pictures()
    family = ImageClassification(images, lambda: mlp((5,), inputs=64, outputs=3), batch_size=6)
    problem = family.sample(seeded(1))
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**62, (), generator=seeded(1))))
        network = mlp((5,), inputs=64, outputs=3)
    assert_close(problem.params, {name: p.detach() for name, p in network.named_parameters()}, rtol=0, atol=0)
    chosen = torch.randint(25, (6,), generator=seeded(2))
    x, y = problem.batch(seeded(2))
    assert torch.equal(x, images.train_x[chosen].float() / 255)
    assert torch.equal(y, images.train_y[chosen])
    expected = F.cross_entropy(network(images.test_x.float() / 255), images.test_y)
    assert_close(family.test_loss(problem.params), expected.detach())


def test_pooled_images_are_means_of_squares():
    images = pictures()
    family = ImageClassification(images, lambda: mlp((5,), inputs=16, outputs=3), batch_size=6, pool=2)
    mean = torch.stack([images.train_x[:, i::2, j::2].float() for i in range(2) for j in range(2)]).mean(dim=0)
    assert_close(family.images.train_x, mean.round().to(torch.uint8))
    with pytest.raises(ValueError, match="pool must divide the images' size of 8, got 3"):
        ImageClassification(images, pool=3)


def test_each_problem_has_images_of_its_own_where_few_are_asked_for():
    images = pictures()
    make = partial(ImageClassification, images, lambda: mlp((5,), inputs=64, outputs=3), batch_size=200)
    family = make(examples=4)
    known = images.train_x.float() / 255
    seen = []
    for i in range(3):
        problem = family.sample(seeded(i))
        x, y = problem.batch(seeded("batch"))
        same = (x[:, None] == known).all(dim=-1).all(dim=-1)  # (200, 25), which image each is
        assert (same.sum(dim=1) == 1).all()
        assert torch.equal(images.train_y[same.int().argmax(dim=1)], y)
        seen.append(frozenset(same.int().argmax(dim=1).tolist()))
        assert len(seen[-1]) == 4
        assert_close(problem.batch(seeded("batch")), (x, y), rtol=0, atol=0)
    assert len(set(seen)) > 1
    for wrong in (0, 26):
        with pytest.raises(ValueError, match=f"examples must be 1 to the 25 images there are, got {wrong}"):
            make(examples=wrong)


def test_data_of_each_problem_and_all_of_it_in_each_batch():
    family = NetworkProblems(curve_net, curves)
    problems = [family.sample(seeded(i)) for i in range(2)]
    batches = [problem.batch(torch.Generator()) for problem in problems]
    assert batches[0][0].shape == (20, 1)
    assert not torch.equal(batches[0][1], batches[1][1])
    again = problems[0].batch(seeded("another"))
    assert_close(again, batches[0], rtol=0, atol=0)


def test_batch_norm_uses_the_statistics_of_the_batch_and_keeps_none():
    network = curve_net(nn.BatchNorm1d(4))
    family = NetworkProblems(lambda: curve_net(nn.BatchNorm1d(4)), FIXED, held_out=FIXED)
    params = family.sample(seeded(0)).params
    network.load_state_dict(params, strict=False)
    expected = F.mse_loss(network(FIXED[0]), FIXED[1]).detach()  # in training
    for _ in range(2):
        assert_close(family.loss(params, FIXED), expected)
        assert_close(family.test_loss(params), expected)


def test_dropout_that_is_off_is_no_dropout():
    def network():
        return curve_net(nn.Dropout(0.5)).eval()

    family = NetworkProblems(network, FIXED)
    params = family.sample(seeded(0)).params
    assert_close(family.loss(params, FIXED), NetworkProblems(curve_net, FIXED).loss(params, FIXED))


def test_what_needs_no_gradient_is_a_constant():
    def network():
        net = curve_net()
        nn.init.ones_(net[0].weight).requires_grad_(False)
        return net

    family = NetworkProblems(network, FIXED)
    params = family.sample(seeded(0)).params
    assert set(params) == {"0.bias", "3.weight", "3.bias"}
    assert family.loss(params, FIXED) == NetworkProblems(curve_net, FIXED).loss(
        params | {"0.weight": torch.ones(4, 1)}, FIXED
    )


def test_a_normal_start():
    family = NetworkProblems(lambda: mlp((100,), inputs=100), (torch.rand(3, 100), torch.rand(3, 10)), start_std=0.1)
    params = family.sample(seeded(0)).params
    for key in ("1.weight", "1.bias", "3.weight"):
        assert params[key].std() == pytest.approx(0.1, rel=0.2), key
        assert params[key].mean() == pytest.approx(0, abs=0.03), key
    normed = FAMILIES["normal start"]().sample(seeded(0)).params
    assert torch.equal(normed["1.weight"], torch.ones(4))
    assert normed["0.weight"].abs().max() < 0.5


# Networks


def test_the_network_for_cifar():
    network = conv_net(norm=True, hidden_norm=True, size=32, colours=3)
    kinds = [type(layer).__name__ for layer in network]
    block = ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"]
    assert kinds == ["_ChannelsLast", *block * 3, "Flatten", "Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(network[0](x), x)
    assert conv_net(kernel=5, size=32, colours=3)[1].weight.shape == (16, 3, 5, 5)


def test_tied_weights_are_the_full_network_s():
    """On pooled images the tied network computes what the full one does with the same weight for each square's pixels,
    and its gradients are the sums over the squares of the full one's."""
    torch.manual_seed(0)
    tied, full = tied_mlp(2, (3,), "tanh", size=4, outputs=2), mlp((3,), "tanh", inputs=16, outputs=2)
    few, many = ([layer for layer in net.modules() if isinstance(layer, nn.Linear)] for net in (tied, full))
    with torch.no_grad():
        wide = few[0].weight.reshape(3, 2, 2).repeat_interleave(2, 1).repeat_interleave(2, 2)
        many[0].weight.copy_(wide.flatten(1))
        many[0].bias.copy_(few[0].bias)
        many[1].load_state_dict(few[1].state_dict())
    x = torch.rand(5, 4, 4)
    pooled = x.reshape(5, 2, 2, 2, 2).mean(dim=(2, 4))
    assert_close(tied(pooled), full(x))
    for net, given in ((tied, pooled), (full, x)):
        net(given).square().sum().backward()
    sums = many[0].weight.grad.reshape(3, 2, 2, 2, 2).sum(dim=(2, 4)).flatten(1)
    assert_close(few[0].weight.grad, sums)
    # What the hidden units are given of a white image.
    ours = torch.stack([tied_mlp(2, (50,))[1][:2](4 * torch.ones(1, 14, 14)).std() for _ in range(50)]).mean()
    theirs = torch.stack([mlp((50,))[:2](torch.ones(1, 28, 28)).std() for _ in range(50)]).mean()
    assert_close(ours, theirs, rtol=0.05, atol=0)


@pytest.mark.parametrize("make", [conv_net, res_net, recurrent, transformer])
@pytest.mark.parametrize(("size", "colours"), [(28, 1), (32, 3), (9, 1), (9, 2)])
def test_networks_take_images_of_each_kind(make, size, colours):
    x = torch.rand(2, size, size) if colours == 1 else torch.rand(2, colours, size, size)
    assert make(size=size, colours=colours, outputs=4)(x).shape == (2, 4)


def test_the_recurrent_network_is_that_of_torch():
    network = recurrent(5, size=8, colours=3).double()
    x = torch.rand(4, 3, 8, 8, dtype=torch.float64)
    rows = torch.cat([x[:, colour] for colour in range(3)], dim=-1)
    assert_close(network(x), network.head(network.cell(rows)[0][:, -1]))


def test_the_residual_network_of_the_paper():
    layers = [m for m in res_net(16, 3, size=32, colours=3).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len([layer for layer in layers if getattr(layer, "kernel_size", None) != (1, 1)]) == 20


# Families around families

AROUND = {
    "rescaled": lambda family: Rescaled(family, overall=(0.1, 10.0)),
    "convex": ConvexMix,
    "convex, same coordinates": lambda family: ConvexMix(family, extra=None),
    "sparse": SparseGradients,
    "noisy": NoisyGradients,
    "transformed": Transformed,
}


@pytest.mark.parametrize("name", AROUND)
def test_the_problem_inside_is_the_one_of_the_seed(name):
    family = Quadratics(3)
    inside, outside = family.sample(seeded(1)), AROUND[name](family).sample(seeded(1))
    assert_close(tree_leaves(outside.batch(seeded(2))[0]), tree_leaves(inside.batch(seeded(2))), rtol=0, atol=0)
    if name != "rescaled":
        assert_close(outside.params["theta"], inside.params["theta"], rtol=0, atol=0)
    if name != "convex":
        assert set(outside.params) == set(inside.params)


@pytest.mark.parametrize("name", ["rescaled", "sparse", "noisy"])
@pytest.mark.parametrize("inside", ["quadratics", "colours"])
def test_the_loss_at_the_start_is_that_of_the_problem_inside(name, inside):
    family = FAMILIES[inside]()
    outside = AROUND[name](family)
    problems = [one.sample(seeded(1)) for one in (family, outside)]
    losses = [
        one.loss(double(p.params), double(p.batch(seeded(2))))
        for one, p in zip((family, outside), problems, strict=True)
    ]
    # theta_0 / c is rounded to float32
    assert_close(losses[1], losses[0], rtol=1e-5 if name == "rescaled" else 0, atol=0)


def test_scales_are_those_asked_for():
    family = Rescaled(Quadratics(500), coordinates=(0.1, 10.0), overall=(1000.0, 1000.0))
    inside, outside = Quadratics(500).sample(seeded(1)), family.sample(seeded(1))
    scales = outside.batch(torch.Generator())[1]["theta"]
    assert_close(outside.params["theta"] * scales, inside.params["theta"])
    logs = torch.log10(scales)
    assert logs.min() >= 2 - 1e-5
    assert logs.max() <= 4 + 1e-5
    assert logs.mean() == pytest.approx(3, abs=0.1)
    once = Rescaled(Quadratics(5), coordinates=None, overall=(0.1, 10.0))
    drawn_scales = torch.stack([once.sample(seeded(i)).batch(torch.Generator())[1]["theta"] for i in range(50)])
    assert torch.equal(drawn_scales.min(dim=1).values, drawn_scales.max(dim=1).values)
    assert torch.log10(drawn_scales[:, 0]).std() == pytest.approx(2 / math.sqrt(12), rel=0.3)


def test_the_convex_function_is_the_mean_of_squares():
    family = ConvexMix(Quadratics(3), extra=4, weight=2.0)
    ((params, batch),) = drawn(family)
    inner, points = batch
    assert torch.equal(params["convex"], torch.zeros(4, dtype=torch.float64))
    assert points["convex"].abs().max() <= 1
    expected = Quadratics(3).loss({"theta": params["theta"]}, inner) + 2 * points["convex"].square().mean()
    assert_close(family.loss(params, batch), expected)
    with_data = ConvexMix(FAMILIES["fixed data"]())
    params = with_data.sample(seeded(1)).params
    own = {name: p for name, p in params.items() if name != "convex"}
    assert with_data.test_loss(params) == FAMILIES["fixed data"]().test_loss(own)


def test_sparse_gradients_are_zero_elsewhere_and_those_of_the_problem_there():
    family = Quadratics(400)
    sparse = SparseGradients(family, density=0.25)
    problem = sparse.sample(seeded(1))
    batches = [problem.batch(seeded(i)) for i in range(2)]
    grads = [torch.func.grad(sparse.loss)(problem.params, batch)["theta"] for batch in batches]
    full = torch.func.grad(family.loss)(problem.params, batches[0][0])["theta"]
    seen = grads[0] != 0
    assert seen.float().mean() == pytest.approx(0.25, abs=0.08)
    assert not torch.equal(seen, grads[1] != 0)
    assert_close(grads[0], torch.where(seen, full, 0))


def test_noise_of_gradients_is_that_asked_for_and_new_at_each_step():
    family = Quadratics(400)
    noisy = NoisyGradients(family, std=3.0)
    problem = noisy.sample(seeded(1))
    params = double(problem.params)
    batches = [double(problem.batch(seeded(i))) for i in range(2)]
    noise = [
        torch.func.grad(noisy.loss)(params, batch)["theta"] - torch.func.grad(family.loss)(params, batch[0])["theta"]
        for batch in batches
    ]
    assert noise[0].std() == pytest.approx(3, rel=0.1)
    assert not torch.allclose(noise[0], noise[1])


@pytest.mark.parametrize("name", ["log", "root", "square", "asinh", "identity"])
def test_transforms_grow_with_the_objective(name):
    family = Bowls(3)
    outside = Transformed(family, name, scale=(0.5, 2.0))
    ((params, batch),) = drawn(outside)
    inner, scale = batch
    along = [{"theta": inner[1] + t * (params["theta"] - inner[1])} for t in torch.linspace(0, 3, 30)]
    losses = torch.stack([family.loss(p, inner) for p in along])
    values = torch.stack([outside.loss(p, batch) for p in along])
    assert (losses.diff() > 0).all()
    assert (values.diff() > 0).all()
    assert 0.5 <= scale <= 2
    if name == "log":
        assert_close(values, scale * (torch.log(losses + 1e-6) - math.log(1e-6)))


def test_test_losses_of_families_around_families():
    family = FAMILIES["fixed data"]()
    params = family.sample(seeded(1)).params
    inside = family.test_loss(params)
    assert SparseGradients(family).test_loss(params) == inside
    assert NoisyGradients(family).test_loss(params) == inside
    assert_close(Transformed(family, "square", scale=(2.0, 2.0)).test_loss(params), 2 * inside.square())
    assert Transformed(family, scale=(1.0, 2.0)).test_loss(params) is None
    assert Transformed(Quadratics(3)).test_loss({}) is None
    assert Rescaled(family).test_loss(params) is None


# Families by name

SHAPES = {name: (32, 3) if name.startswith("cifar") else (28, 1) for name in IMAGE_SETS}
NEEDED = {
    "quadratics", "quadratics-uniform", "mnist-mlp", "mnist-mlp-40", "mnist-mlp-2-layers", "mnist-mlp-relu",
    "fashion-mlp", "mnist-mlp-normal-start", "mnist-softmax", "mnist-conv", "mnist-gru", "mnist-transformer",
    "cifar10-conv", "cifar5-conv", "cifar2-conv", "digits-mlp", "bowls", "rosenbrock",
}  # fmt: skip


@pytest.fixture
def stand_ins(monkeypatch):
    """Random pictures in place of all image sets; the names of those that were read."""
    read = []

    def stand_in(name):
        read.append(name)
        size, colours = SHAPES[name]
        labels = 5 if name.startswith("cifar5") else 2 if name.startswith("cifar2") else 10
        return pictures(size, colours, labels)

    for name in IMAGE_SETS:
        monkeypatch.setitem(IMAGE_SETS, name, partial(stand_in, name))
    return read


def test_names():
    assert set(PROBLEMS) >= NEEDED
    assert all(re.fullmatch("[a-z0-9-]+", name) for name in PROBLEMS)


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_named_family_is_one(name, stand_ins):
    assert not stand_ins
    family = PROBLEMS[name]()
    assert isinstance(family, ProblemFamily)
    start = name.partition("-")[0]
    if start in ("mnist", "fashion", "digits", "cifar10", "cifar5", "cifar2"):
        assert len(stand_ins) == 1
        assert stand_ins[0].startswith(start)
    problem = family.sample(seeded(1))
    grads, loss = torch.func.grad_and_value(family.loss)(problem.params, problem.batch(seeded(2)))
    assert torch.isfinite(loss)
    assert all(torch.isfinite(grad).all() for grad in grads.values())


def test_named_networks(stand_ins):
    sizes = {name: sum(p.numel() for p in PROBLEMS[name]().sample(seeded(0)).params.values()) for name in PROBLEMS}
    assert sizes["mnist-mlp"] == 784 * 20 + 20 + 20 * 10 + 10
    assert sizes["mnist-mlp-40"] == 784 * 40 + 40 + 40 * 10 + 10
    assert sizes["mnist-mlp-2-layers"] == sizes["mnist-mlp"] + 20 * 20 + 20
    assert sizes["mnist-softmax"] == 7850
    assert sizes["cifar10-conv"] - sizes["cifar2-conv"] == 8 * 33
    start = PROBLEMS["mnist-mlp-normal-start"]().sample(seeded(0)).params["1.weight"]
    assert start.std() == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize("name", ["fashion-t10k-mlp", "cifar2-batch-1-conv"])
def test_a_named_family_on_real_images(name):
    try:
        family = PROBLEMS[name]()
    except FileNotFoundError as error:
        pytest.skip(f"needs part of the real data: {error}")
    problem = family.sample(seeded(0))
    batches = [problem.batch(seeded(i)) for i in range(20)]
    rule, state = SGDRule(0.1), RuleState({}, {})
    losses = unroll(rule, family.loss, problem.params, state, steps=20, batches=batches, first_order=True).losses
    assert losses[-5:].mean() < losses[0]


# The command line


def configuration(**network):
    inside = {
        "class_path": "learned_optim.problems.NetworkProblems",
        "init_args": {"data": {"class_path": "tests.test_problems.Curves", "init_args": {"points": 10}}, **network},
    }
    family = {"class_path": "learned_optim.problems.Rescaled", "init_args": {"family": inside, "overall": [0.1, 10.0]}}
    sizes = {"horizon": 4, "window": 2, "instances": 2, "steps_per_epoch": 2, "val_instances": 2}
    rule = {"class_path": "learned_optim.LSTMRule", "init_args": {"hidden_size": 3}}
    return {
        "seed_everything": 1,
        "trainer": {
            "accelerator": "cpu", "max_epochs": 2, "num_sanity_val_steps": 0, "enable_progress_bar": False,
            "enable_model_summary": False, "log_every_n_steps": 1,
            "logger": {"class_path": "pytorch_lightning.loggers.CSVLogger", "init_args": {"save_dir": "log"}},
        },
        "model": {
            "class_path": "lightning_modules.LearnedOptimizerModule",
            "init_args": {"family": family, "rule": rule, **sizes},
        },
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
@pytest.mark.parametrize(
    "network",
    [
        {"model": "tests.test_problems.curve_net", "batch_size": 5, "loss": "torch.nn.functional.l1_loss"},
        {"model": "learned_optim.problems.mlp", "model_options": {"hidden": [3], "inputs": 1, "outputs": 1}},
        {
            "model": {"class_path": "tests.test_problems.CurveNet", "init_args": {"width": 3}},
            "loss": {"class_path": "torch.nn.HuberLoss", "init_args": {"delta": 0.5}},
            "start_std": 0.1,
        },
    ],
    ids=["a function", "a function with options", "a class"],
)
def test_a_family_of_ones_own_from_a_configuration_file(network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["learned-optim"])
    Path("own.yaml").write_text(yaml.safe_dump(configuration(**network)))
    main(["fit", "--config", "own.yaml"])
    (log,) = Path("log").rglob("metrics.csv")
    header, *rows = log.read_text().splitlines()
    column = header.split(",").index("train/loss")
    losses = [float(row.split(",")[column]) for row in rows if row.split(",")[column]]
    assert len(losses) == 4
    assert all(math.isfinite(loss) for loss in losses)


def test_the_examples_of_the_documents_run():
    text = (Path(__file__).parents[1] / "docs" / "problems.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 4
    namespace = {}
    for block in blocks:
        exec(compile(block, "docs/problems.md", "exec"), namespace)
    assert namespace["loss"].shape == namespace["test_loss"].shape == ()
    assert "convex" in namespace["general"].sample(seeded(0)).params
    (file,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    options = yaml.safe_load(file)["model"]["init_args"]["family"]["init_args"]["model_options"]
    assert mlp(**options)(torch.rand(3, 1)).shape == (3, 1)


# Bad input


class Writes(nn.Module):
    """Counts its calls in a buffer."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls.add_(1)
        return self.linear(x)


class Drops(nn.Linear):
    def forward(self, x):
        return F.dropout(super().forward(x), 0.5)


class RandomFeatures(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("features", torch.randn(1, 8))
        self.linear = nn.Linear(8, 1)

    def forward(self, x):
        return self.linear(torch.cos(x @ self.features))


def varying(generator):
    x, y = curves(generator)
    count = int(torch.randint(2, 10, (), generator=generator))
    return x[:count], y[:count]


def sampled(*args, **options):
    family = NetworkProblems(*args, **options)
    for i in range(8):
        family.sample(seeded(i))


SHARED = nn.Linear(1, 1)
CASES = {
    "a network": (
        lambda: NetworkProblems(nn.Linear(1, 1), FIXED),
        TypeError,
        "model must make a fresh network, .* Linear",
    ),
    "the same network": (lambda: sampled(lambda: SHARED, FIXED), ValueError, "a fresh network at each call"),
    "one tensor": (lambda: NetworkProblems(curve_net, FIXED[0]), ValueError, r"data must be two tensors \(x, y\)"),
    "three tensors": (lambda: NetworkProblems(curve_net, (*FIXED, FIXED[0])), ValueError, "data must be two tensors"),
    "rows": (
        lambda: NetworkProblems(curve_net, (FIXED[0], FIXED[1][:5])),
        ValueError,
        "data: x and y must have as many rows, at least one, got 20 and 5",
    ),
    "no rows": (lambda: NetworkProblems(curve_net, (FIXED[0][:0], FIXED[1][:0])), ValueError, "at least one, got 0"),
    "held out": (
        lambda: NetworkProblems(curve_net, FIXED, held_out=(1, 2)),
        ValueError,
        "held_out must be two tensors",
    ),
    "drawn data": (
        lambda: sampled(curve_net, lambda g: FIXED[0]),
        ValueError,
        r"data\(generator\) must be two tensors",
    ),
    "shapes": (lambda: sampled(curve_net, varying), ValueError, "data must have the same shapes for each problem"),
    "batch size": (
        lambda: NetworkProblems(curve_net, FIXED, batch_size=0),
        ValueError,
        "batch_size must be >= 1.* got 0",
    ),
    "start": (lambda: NetworkProblems(curve_net, FIXED, start_std=0.0), ValueError, "start_std must be > 0, got 0.0"),
    "dropout": (
        lambda: sampled(lambda: curve_net(nn.Dropout()), FIXED),
        ValueError,
        "draws random numbers, as dropout",
    ),
    "dropout function": (lambda: sampled(lambda: Drops(1, 1), FIXED), ValueError, r"dropout 0 or in eval\(\) mode"),
    "buffers": (lambda: sampled(Writes, FIXED), ValueError, "writes its buffer 'calls' at each call"),
    "random constants": (
        lambda: sampled(RandomFeatures, FIXED),
        ValueError,
        "'features' is no parameter to learn, but",
    ),
    "lazy": (lambda: NetworkProblems(lambda: nn.LazyLinear(1), FIXED), ValueError, "parameters without a size"),
    "loss": (
        lambda: sampled(curve_net, FIXED, loss=torch.sub),
        ValueError,
        r"must return a scalar, got shape \(20, 1\)",
    ),
    "quadratics": (lambda: Quadratics(distribution="normal"), ValueError, "unknown distribution 'normal'.*gaussian"),
    "size": (lambda: Quadratics(0), ValueError, "size must be >= 1, got 0"),
    "bowl": (lambda: Bowls(1), ValueError, "Bowls: size must be >= 2, got 1"),
    "condition": (lambda: Bowls(condition=(0.5, 2.0)), ValueError, "condition must be >= 1"),
    "valley": (lambda: Rosenbrock(1), ValueError, "Rosenbrock: size must be >= 2"),
    "range": (
        lambda: Rescaled(Bowls(), overall=(2.0, 1.0)),
        ValueError,
        r"overall must be \(low, high\) .* \(2.0, 1.0\)",
    ),
    "not positive": (lambda: Rescaled(Bowls(), coordinates=(0.0, 1.0)), ValueError, "Rescaled: coordinates must be"),
    "no family": (lambda: Rescaled(curve_net), TypeError, "family must be a ProblemFamily, got a function"),
    "extra": (lambda: ConvexMix(Bowls(), extra=0), ValueError, "extra must be >= 1.* got 0"),
    "weight": (lambda: ConvexMix(Bowls(), weight=-1.0), ValueError, "weight must be a number > 0, got -1.0"),
    "twice": (lambda: ConvexMix(ConvexMix(Bowls())).sample(seeded(0)), ValueError, "'convex' already; use extra=None"),
    "density": (lambda: SparseGradients(Bowls(), density=0.0), ValueError, "density must be .* got 0.0"),
    "noise": (lambda: NoisyGradients(Bowls(), std=-1.0), ValueError, "std must be .* got -1.0"),
    "transform": (lambda: Transformed(Bowls(), "exp"), ValueError, "unknown transform 'exp'; there are .*log"),
    "small images": (lambda: conv_net(size=7), ValueError, "size must be >= 8"),
    "even kernel": (lambda: conv_net(kernel=4), ValueError, "kernel must be odd, .* got 4"),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name):
    call, kind, message = CASES[name]
    with pytest.raises(kind, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianClasses(0), "inputs >= 1.*got 0, 3, 100 and 1.0"),
        (lambda: GaussianClasses(classes=1), "classes >= 2"),
        (lambda: GaussianClasses(spread=0.0), "spread > 0"),
        (lambda: SineCurves(0), "waves >= 1.*got 0, 100, 6.0 and 0.1"),
        (lambda: SineCurves(noise=-1.0), "noise >= 0"),
    ],
)
def test_bad_drawn_data(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_drawn_data_are_what_they_say():
    x, y = GaussianClasses(4, 3, examples=5000, spread=0.1)(seeded(0))
    assert x.shape == (5000, 4)
    within = torch.stack([x[y == k].std(dim=0) for k in range(3)])
    assert_close(within, torch.full_like(within, 0.1), rtol=0.1, atol=0)
    x, y = SineCurves(1, fastest=3.0, examples=4000, noise=0.0)(seeded(1))
    # Of one wave, amplitude and frequency follow from y'' = -frequency^2 y.
    order = x[:, 0].argsort()
    points, values = x[order, 0][::40], y[order, 0][::40]
    (dx, dy), between = (points.diff(), values.diff()), (values[1:-1])
    second = (dy / dx).diff() / (dx[1:] + dx[:-1]) * 2
    square = -(second * between).sum() / between.square().sum()
    assert 0 < square < 9.2


def test_batches_come_from_where_the_data_are():
    x, y = torch.randn(10, 3), torch.randn(10, 1)
    inside = NetworkProblems(partial(torch.nn.Linear, 3, 1), (x, y), batch_size=4, held_out=(x, y))
    outside = ConvexMix(inside)
    outside.to("meta")
    problem = outside.sample(torch.Generator())
    batch, points = problem.batch(torch.Generator())
    assert all(part.is_meta and len(part) == 4 for part in batch)
    assert all(part.is_meta for part in inside.held_out)
    assert not any(p.is_meta for p in (*problem.params.values(), *points.values()))
