"""A step in chunks is the step."""

import math

import pytest
import torch
from torch._inductor.exc import InvalidCxxCompiler
from torch.testing import assert_close

from learned_optim import LSTMOptimizer, LSTMRule, chunks, compiling
from learned_optim.features import FEATURES, ever_seen
from tests.laws.test_flat_memory import peak

SHAPES = {"scalar": (), "small": (3,), "matrix": (4, 3), "kernel": (2, 3, 2, 2), "large": (17,)}


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", 7)


def setting(features, **options):
    torch.manual_seed(0)
    rule = LSTMRule(features, hidden_size=3, **options)
    with torch.no_grad():
        for weight in rule.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    params = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    return rule, params, rule.init_state(params)


def grads_of(params):
    return {name: torch.randn_like(p) for name, p in params.items()}


@pytest.mark.parametrize("features", [*FEATURES, tuple(FEATURES)], ids=str)
@pytest.mark.parametrize("layers", [1, 2])
@torch.no_grad()
def test_in_chunks_as_at_once(features, layers):
    rule, params, state = setting(features, num_layers=layers, shortcut=True)
    at_once = state
    for k in range(4):
        grads = grads_of(params)
        if k == 1:  # some are without a gradient, so that steps are counted differently afterwards
            grads = {name: grads[name] for name in ("matrix", "large")}
        if k == 2:
            grads["matrix"] = grads["matrix"].t().contiguous().t()
        updates, at_once = rule(grads, at_once, params)
        assert chunks.steps_in_chunks(rule, grads, state)
        its_updates, finite = rule.step_(grads, state, params)
        assert finite
        assert_close(its_updates, updates)
        assert_close(tuple(state), tuple(at_once))


@pytest.mark.parametrize("zeros", ["none", "some", "all"])
@pytest.mark.parametrize("layers", [1, 2])
def test_what_a_look_at_the_gradients_tells_changes_nothing(layers, zeros):
    rule, params, state = setting("log_sign", num_layers=layers)
    looking = recorded = state
    for _ in range(4):
        grads = grads_of(params)
        if zeros != "none":
            grads["matrix"][: 2 if zeros == "some" else 4] = 0.0
        with torch.no_grad():
            updates, looking = rule(grads, looking, params)
        others, recorded = rule(grads, recorded, params)  # while gradients are recorded there is no look
        assert_close(updates, others, rtol=0, atol=0)
        assert_close(tuple(looking), tuple(recorded), rtol=0, atol=0)
    untouched = not bool(updates["matrix"].any())
    assert untouched == (zeros == "all")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_ever_seen_is_any_of_what_is_remembered(dtype):
    tiny = torch.finfo(dtype).smallest_normal
    values = torch.tensor([0.0, -0.0, tiny, -tiny, 1.0, -1.0, math.inf, math.nan, torch.finfo(dtype).max], dtype=dtype)
    memory = torch.cartesian_prod(values, values, values)
    for grad in (torch.zeros(len(memory), dtype=dtype), memory[:, 0]):
        assert_close(ever_seen(grad, memory), (grad != 0) | (memory != 0).any(dim=-1), rtol=0, atol=0)


@torch.no_grad()
def test_states_of_different_dtypes_keep_them():
    rule, params, state = setting("moments", num_layers=2)
    for key in ("hidden_0", "cell_1"):
        state.per_param["matrix"][key] = state.per_param["matrix"][key].bfloat16()
    at_once = state
    for _ in range(3):
        grads = grads_of(params)
        updates, at_once = rule(grads, at_once, params)
        assert chunks.steps_in_chunks(rule, grads, state)
        assert_close(rule.step_(grads, state, params)[0], updates)
        assert_close(tuple(state), tuple(at_once))


@torch.no_grad()
def test_small_states_are_moved_together_once_and_saved_each_by_itself(tmp_path):
    rule, params, _ = setting("log_sign")
    params = [torch.nn.Parameter(p) for p in params.values()]
    optimizer = LSTMOptimizer(params, rule=rule)
    places = []
    for _ in range(3):
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer.step()
        places.append([optimizer.state[p]["cell_1"].data_ptr() for p in params])
    assert places[0] == places[1] == places[2]
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    again = LSTMOptimizer([torch.nn.Parameter(p.detach().clone()) for p in params], rule=setting("log_sign")[0])
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for other, p in zip(again.param_groups[0]["params"], params, strict=True):
        other.grad = p.grad.clone()
    optimizer.step(), again.step()
    assert_close([*again.param_groups[0]["params"]], params, rtol=0, atol=0)


@torch.no_grad()
def test_what_is_not_finite_does_not_enter_the_state_of_others():
    rule, params, state = setting("moments")
    rule.step_(grads_of(params), state, params)
    state.per_param["large"]["hidden_0"][16] = math.nan
    before = {name: {key: value.clone() for key, value in own.items()} for name, own in state.per_param.items()}
    _, finite = rule.step_(grads_of(params), state, params)
    assert not finite
    nans = [int(value.isnan().sum()) for own in state.per_param.values() for value in own.values()]
    assert sum(nans) == 3
    assert_close(state.per_param["large"]["m"][-1], before["large"]["m"][-1])


@torch.no_grad()
def test_a_step_that_is_not_finite_elsewhere_is_not_taken():
    rule, params, state = setting("moments")
    before = {name: {key: value.clone() for key, value in own.items()} for name, own in state.per_param.items()}
    _, finite = rule.step_(grads_of(params), state, params, finite=torch.tensor(False))
    assert not finite
    assert_close(state.per_param, before, rtol=0, atol=0)


REFUSED = {
    "huge": lambda rule, grads, state: grads["matrix"].fill_(1e19),
    "not a number": lambda rule, grads, state: grads["matrix"].fill_(math.nan),
    "weights": lambda rule, grads, state: rule.head.weight.fill_(math.inf),
    "empty": lambda rule, grads, state: grads.update(matrix=torch.zeros(0)),
    "dtypes": lambda rule, grads, state: grads.update(matrix=grads["matrix"].double()),
    "strides": lambda rule, grads, state: state.per_param["matrix"].update(hidden_0=torch.zeros(3, 4, 3).mT),
}


@pytest.mark.parametrize("name", REFUSED)
@torch.no_grad()
def test_other_steps_are_taken_at_once(name):
    rule, params, state = setting("log_sign")
    grads = grads_of(params)
    assert chunks.steps_in_chunks(rule, grads, state)
    REFUSED[name](rule, grads, state)
    assert not chunks.steps_in_chunks(rule, grads, state)


@torch.no_grad()
def test_nothing_grows_with_the_model_but_the_updates(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", 512)
    rule = LSTMRule()

    def step(size):
        params = {"p": torch.randn(size)}
        grads, state = grads_of(params), rule.init_state(params)
        return peak(lambda: rule.step_(grads, state, params))

    few, many = step(1024), step(65536)
    assert many - few < 2 * 4 * 65536  # the updates and their like, of 320 bytes that the state takes


@pytest.fixture
def _fresh_compiler():
    compiling.compiled_step.cache_clear()
    yield
    compiling.compiled_step.cache_clear()


def trained(*, compile, steps=3):
    rule, params, _ = setting(("log_sign", "moments", "step_count"), shortcut=True)
    optimizer = LSTMOptimizer([torch.nn.Parameter(p) for p in params.values()], rule=rule, compile=compile)
    assert rule.compiled == compile
    for _ in range(steps):
        for p in optimizer.param_groups[0]["params"]:
            p.grad = torch.randn_like(p)
        optimizer.step()
    return optimizer


@pytest.mark.usefixtures("_fresh_compiler")
def test_compiled_chunks_are_the_others(monkeypatch):
    taken = []
    whole = compiling.compiled_step()
    monkeypatch.setattr(chunks, "compiled_step", lambda: lambda *args: taken.append(1) or whole(*args))
    compiled, eager = trained(compile=True), trained(compile=False)
    coordinates = sum(math.prod(shape) for shape in SHAPES.values())
    assert len(taken) == 3 * (coordinates // chunks.CHUNK)
    assert not compiled.skipped_steps
    assert_close(compiled.param_groups[0]["params"], eager.param_groups[0]["params"])
    assert_close([*compiled.state.values()], [*eager.state.values()])


@pytest.mark.usefixtures("_fresh_compiler")
def test_without_a_compiler_steps_go_on_with_one_sentence(monkeypatch):
    def missing(*args):
        raise InvalidCxxCompiler

    monkeypatch.setattr(torch, "compile", lambda function, **options: missing)
    with pytest.warns(UserWarning, match="compile=True goes on without a compiler") as told:
        compiled = trained(compile=True)
    assert len(told) == 1
    eager = trained(compile=False)
    assert_close([*compiled.state.values()], [*eager.state.values()], rtol=0, atol=0)
