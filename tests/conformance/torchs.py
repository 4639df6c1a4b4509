"""The checks of ``TestOptimRenewed`` in torch's ``test_optim.py``, under their names there."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import pickle
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.testing import assert_close
from torch.testing._internal.common_optimizers import OptimizerErrorEnum, OptimizerInfo, TensorTracker

from learned_optim import MetaSGD, RuleOptimizer, SGDRule
from tests.conformance.infos import FLAGS, learned
from tests.conformance.registry import REFUSED, Line, check, needs_gpus, own_decay, same, setups, snapshot

REFUSALS = (TypeError, ValueError)


def advance(schedulers: list[Any], loss: Tensor) -> None:
    for scheduler in schedulers:
        scheduler.step(loss) if isinstance(scheduler, ReduceLROnPlateau) else scheduler.step()


def assert_direction(loss: Tensor, first: Tensor, *, maximize: bool) -> None:
    assert bool(torch.isfinite(loss))
    assert loss > first if maximize else loss < first


def refuses(info: OptimizerInfo, *flags: str) -> str:
    """A flag is refused by name wherever it can be given, and nothing has changed then."""
    for flag in flags:
        with pytest.raises(REFUSALS, match=flag):
            info.optim_cls(Line().params, **{flag: True})
        with pytest.raises(ValueError, match=f"{flag}=True is not supported"):
            info.optim_cls([{"params": Line().params, flag: True}])
        problem = Line()
        optimizer = info.optim_cls(problem.params)
        problem.train(optimizer, 1)
        saved = copy.deepcopy(optimizer.state_dict())
        saved["param_groups"][0][flag] = True
        before = snapshot(optimizer)
        with pytest.raises(ValueError, match=f"{flag}=True is not supported"):
            optimizer.load_state_dict(saved)
        with pytest.raises(ValueError, match=f"{flag}=True is not supported"):
            optimizer.add_param_group({"params": Line().params, flag: True})
        same(snapshot(optimizer), before)
    return REFUSED


# The table


@check
def optim_infos_do_not_specify_global_cliquey_kwargs(info: OptimizerInfo) -> None:
    """No option under which the checks run chooses an implementation."""
    for optim_input in info.optim_inputs_func(device="cpu"):
        assert not set(FLAGS) & set(optim_input.kwargs)
    assert not info.supported_impls


@check
def errors(info: OptimizerInfo) -> None:
    """Torch's error inputs for every optimizer and those of our options raise or warn with their messages."""
    inputs = info.optim_error_inputs_func(device="cpu", dtype=torch.float32)
    assert len(inputs) > 10
    for error in inputs:
        given = error.optimizer_error_input
        expected: Any = pytest.warns if issubclass(error.error_type, Warning) else pytest.raises
        raising = expected(error.error_type, match=error.error_regex)
        if error.error_on is OptimizerErrorEnum.CONSTRUCTION_ERROR:
            with raising:
                info.optim_cls(given.params, **given.kwargs)
        else:
            optimizer = info.optim_cls(given.params, **given.kwargs)
            with raising:
                optimizer.step()


# Direction


@check
def forloop_goes_right_direction(info: OptimizerInfo) -> None:
    """The loss goes down in 20 steps, up with maximize: contiguous and not, with and without schedulers."""
    for contiguous, make in itertools.product((True, False), (None, *info.scheduler_inputs)):
        for kwargs, _ in setups(info):
            problem = Line(contiguous=contiguous)
            assert problem.weight.is_contiguous() == contiguous
            optimizer = info.optim_cls(problem.params, **kwargs)
            schedulers = [scheduler(optimizer) for scheduler in make or []]
            first = problem.loss()
            for _ in range(20):
                loss = problem.backward(optimizer)
                optimizer.step()
                advance(schedulers, loss)
            assert_direction(problem.loss(), first, maximize=kwargs.get("maximize", False))


@check
@needs_gpus(2)
def forloop_goes_right_direction_multigpu(info: OptimizerInfo) -> None:
    """The same with parameters on two GPUs; a rule that looks across them refuses."""
    for make in (None, *info.scheduler_inputs):
        for kwargs, _ in setups(info):
            problem = Line(device="cuda:0")
            problem.bias = nn.Parameter(problem.bias.detach().to("cuda:1"))
            problem.loss = lambda p=problem: (p.weight.mv(p.x).to("cuda:1") + p.bias).pow(2).sum()
            optimizer = info.optim_cls(problem.params, **kwargs)
            if not info.supports_multiple_devices:
                problem.backward(optimizer)
                with pytest.raises(RuntimeError, match="they must be on one device"):
                    optimizer.step()
                continue
            schedulers = [scheduler(optimizer) for scheduler in make or []]
            first = problem.loss()
            for _ in range(20):
                loss = problem.backward(optimizer)
                optimizer.step()
                advance(schedulers, loss)
            assert_direction(problem.loss(), first, maximize=kwargs.get("maximize", False))


@check
def param_group_with_lrscheduler_goes_right_direction(info: OptimizerInfo) -> None:
    """The loss goes down with two groups of different lr under each scheduler."""
    for make in info.scheduler_inputs:
        problem = Line()
        optimizer = info.optim_cls([{"params": [problem.weight]}, {"params": [problem.bias], "lr": 0.25}])
        schedulers = [scheduler(optimizer) for scheduler in make]
        first = problem.loss()
        for _ in range(20):
            loss = problem.backward(optimizer)
            optimizer.step()
            advance(schedulers, loss)
        assert optimizer.param_groups[1]["lr"] == pytest.approx(0.25 * optimizer.param_groups[0]["lr"])
        assert_direction(problem.loss(), first, maximize=False)


@check
def tensor_lr(info: OptimizerInfo) -> None:
    """An lr in a tensor of one element and 0, 1 or 2 dimensions moves as the number does."""
    for dims in (0, 1, 2):
        for kwargs, problem in setups(info):
            reference, scalars = Line(), nn.Parameter(torch.tensor(2.0))
            numbers = nn.Parameter(scalars.detach().clone())
            optimizer = info.optim_cls([*problem.params, scalars], **kwargs | {"lr": torch.full([1] * dims, 0.3)})
            expected = info.optim_cls([*reference.params, numbers], **kwargs | {"lr": 0.3})
            for _ in range(5):
                scalars.grad, numbers.grad = torch.tensor(1.5), torch.tensor(1.5)
                problem.loss().backward()
                reference.loss().backward()
                optimizer.step()
                expected.step()
                optimizer.zero_grad()
                expected.zero_grad()
            assert_close([*problem.params, scalars], [*reference.params, numbers])
            assert not torch.equal(problem.weight, Line().weight)


@check
def param_groups_weight_decay(info: OptimizerInfo) -> None:
    """Groups with and without weight_decay go the right way, and only the former decays."""
    for kwargs, problem in setups(info):
        groups = [{"params": [problem.weight], **kwargs}, {"params": [problem.bias], **kwargs, "weight_decay": 0.0}]
        optimizer = info.optim_cls(groups)
        first = problem.loss()
        problem.train(optimizer, 20)
        assert_direction(problem.loss(), first, maximize=kwargs.get("maximize", False))
    unused, kept = (nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = info.optim_cls([{"params": [unused], "weight_decay": 0.1}, {"params": [kept]}], lr=0.5)
    unused.grad, kept.grad = torch.zeros(3), torch.zeros(3)
    optimizer.step()
    own = 1 - 0.5 * own_decay(optimizer)
    assert_close([unused, kept], [torch.full((3,), own - 0.5 * 0.1), torch.full((3,), own)])


@check
def param_groups_lr(info: OptimizerInfo) -> None:
    """Each group moves by its own lr, and one whose lr is zero not at all."""
    for kwargs, problem in setups(info):
        still = nn.Parameter(torch.randn(2))
        before = still.detach().clone()
        groups = [{"params": problem.params, "lr": 0.5, **kwargs}, {"params": [still]}]
        optimizer = info.optim_cls(groups, lr=0.0)
        first = problem.loss()
        for _ in range(20):
            problem.backward(optimizer)
            still.grad = torch.rand_like(still)
            optimizer.step()
        assert_direction(problem.loss(), first, maximize=kwargs.get("maximize", False))
        same(still.detach(), before)


# Sparse, complex and mixed parameters


@check
def rosenbrock_sparse(info: OptimizerInfo) -> str:
    """A sparse gradient is refused by the parameter's name, and nothing has changed then."""
    for kwargs, problem in setups(info):
        embedding = nn.Embedding(5, 2, sparse=True)
        optimizer = info.optim_cls([*problem.named, ("embedding", embedding.weight)], **kwargs)
        problem.train(optimizer, 2)
        before = snapshot(optimizer)
        problem.backward(optimizer)
        embedding(torch.tensor([1])).sum().backward()
        with pytest.raises(RuntimeError, match=r"gradient of parameter 'embedding' is sparse.*sparse=False"):
            optimizer.step()
        same(snapshot(optimizer), before)
    return REFUSED


@check
def complex(info: OptimizerInfo) -> None:
    """Complex parameters beside real ones move as their real views do, bit for bit."""
    for kwargs, _ in setups(info):
        torch.manual_seed(1)
        mixed = [torch.randn(10, 5, dtype=torch.complex64), torch.randn(10, dtype=torch.complex64), torch.randn(10, 5)]
        real = [torch.view_as_real(p).clone() if p.is_complex() else p.clone() for p in mixed]
        for p in (*mixed, *real):
            p.requires_grad_()
        optimizer, expected = info.optim_cls(mixed, **kwargs), info.optim_cls(real, **kwargs)
        for _ in range(3):
            for p, q in zip(mixed, real, strict=True):
                q.grad = torch.randn_like(q)
                p.grad = torch.view_as_complex(q.grad.clone()) if p.is_complex() else q.grad.clone()
            optimizer.step()
            expected.step()
            for p, q in zip(mixed, real, strict=True):
                same((torch.view_as_real(p) if p.is_complex() else p).detach(), q.detach())


@check
def complex_2d(info: OptimizerInfo) -> str | None:
    """A complex tensor on Rosenbrock's function moves as its real and imaginary parts apart."""

    def rosenbrock(z: Tensor) -> Tensor:
        return ((1 - z[0]) ** 2 + 100 * (z[1] - z[0] ** 2) ** 2).abs()

    for kwargs, _ in setups(info):
        torch.manual_seed(1)
        whole = torch.randn(2, dtype=torch.complex64, requires_grad=True)
        parts = [part.detach().clone().requires_grad_() for part in (whole.real, whole.imag)]
        optimizer, apart = info.optim_cls([whole], **kwargs), info.optim_cls(parts, **kwargs)
        if optimizer.guard is not None or optimizer.rule.scope == "network" or info.optim_cls.__name__ == "RuleMap":
            return "tensorwise"
        gradients = TensorTracker()
        for _ in range(3):
            optimizer.zero_grad()
            rosenbrock(whole).backward()
            gradients.add(whole.grad.real)
            gradients.add(whole.grad.imag)
            apart.zero_grad()
            rosenbrock(torch.complex(*parts)).backward()
            for part in parts:
                expected = gradients.tensors.pop(0)
                assert_close(part.grad, expected)
                part.grad.copy_(expected)
            optimizer.step()
            apart.step()
            assert_close([whole.real.detach(), whole.imag.detach()], [part.detach() for part in parts])
            with torch.no_grad():  # what differs by rounding shall not grow
                for part, value in zip(parts, (whole.real, whole.imag), strict=True):
                    part.copy_(value)
        assert gradients.all_popped()
    return None


@check
@needs_gpus(1)
def mixed_device_dtype(info: OptimizerInfo) -> None:
    """Parameters of four dtypes on the CPU and a GPU move as each does alone; a rule across them refuses."""
    dtypes = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    for kwargs, _ in setups(info):
        torch.manual_seed(0)
        params = [torch.rand(2, 3, dtype=dtype, device=device) for device in ("cpu", "cuda") for dtype in dtypes]
        grads = [torch.rand_like(p) for p in params]
        apart = [p.clone().requires_grad_() for p in params]
        optimizer = info.optim_cls([p.requires_grad_() for p in params], **kwargs)
        for p, q, grad in zip(params, apart, grads, strict=True):
            p.grad, q.grad = grad, grad.clone()
        if not info.supports_multiple_devices:
            with pytest.raises(RuntimeError, match="they must be on one device"):
                optimizer.step()
            continue
        alone = [info.optim_cls([q], **kwargs) for q in apart]
        for _ in range(7):
            optimizer.step()
            for one in alone:
                one.step()
        assert_close(params, apart)


@check
def set_default_dtype_works_with_foreach(info: OptimizerInfo) -> None:
    """The default dtype changes no step; there is no foreach to work with."""
    for kwargs, reference in setups(info):
        expected = info.optim_cls(reference.params, **kwargs)
        reference.train(expected, 7)
        for dtype in (torch.float64, torch.float16):
            problem = Line()
            optimizer = info.optim_cls(problem.params, **kwargs)
            torch.set_default_dtype(dtype)
            try:
                problem.train(optimizer, 7)
            finally:
                torch.set_default_dtype(torch.float32)
            same(snapshot(optimizer), snapshot(expected))


# Implementations that there are not


@check
def foreach_matches_forloop(info: OptimizerInfo) -> str:
    """There is no foreach, and the flag is refused at construction, in groups and in states."""
    return refuses(info, "foreach")


@check
def foreach_large_tensor(info: OptimizerInfo) -> str:
    """There is no foreach, for large tensors either."""
    return refuses(info, "foreach")


@check
def peak_memory_foreach(info: OptimizerInfo) -> str:
    """There is no foreach whose memory could be measured."""
    return refuses(info, "foreach")


@check
def defaults_changed_to_foreach(info: OptimizerInfo) -> str:
    """There is no foreach, so that it is no default; no group holds the flag."""
    assert not set(FLAGS) & set(info.optim_cls(Line().params).param_groups[0])
    return refuses(info, "foreach")


@check
def fused_matches_forloop(info: OptimizerInfo) -> str:
    """There is no fused step, and the flag is refused at construction, in groups and in states."""
    return refuses(info, "fused")


@check
def fused_large_tensor(info: OptimizerInfo) -> str:
    """There is no fused step, for large tensors either."""
    return refuses(info, "fused")


@check
def fused_error_on_params_on_meta(info: OptimizerInfo) -> None:
    """A step of parameters on the meta device raises and spoils nothing: the rule goes on with real ones."""
    with torch.device("meta"):
        model = nn.Linear(2, 3)
    optimizer = info.optim_cls(model.parameters())
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    weights = copy.deepcopy(optimizer.rule.state_dict())
    with pytest.raises(RuntimeError, match="'0' is on the meta device"):
        optimizer.step()
    same(optimizer.rule.state_dict(), weights)
    assert not optimizer.state


@check
def fused_does_not_step_if_foundinf(info: OptimizerInfo) -> None:
    """A step with an infinite gradient or NaN is left out whole and counted; parameters and state stay."""
    for kwargs, problem in setups(info):
        optimizer = info.optim_cls(problem.params, **kwargs)
        problem.train(optimizer, 2)
        for skipped, value in enumerate((torch.inf, -torch.inf, torch.nan), start=1):
            problem.backward(optimizer)
            problem.bias.grad[3] = value
            params, state = copy.deepcopy((problem.params, list(optimizer.state.values())))
            optimizer.step()
            same(problem.params, params)
            assert optimizer.skipped_steps == skipped
            state[0]["skipped"] += 1
            same(list(optimizer.state.values()), state)


@check
@needs_gpus(1)
def fused_cpu_matches_cuda(info: OptimizerInfo) -> None:
    """Steps on a GPU are those on the CPU."""
    for kwargs, problem in setups(info):
        other = Line(device="cuda")
        optimizer, expected = info.optim_cls(other.params, **kwargs), info.optim_cls(problem.params, **kwargs)
        other.train(optimizer, 7)
        problem.train(expected, 7)
        assert_close([p.cpu() for p in other.params], problem.params, rtol=1e-4, atol=1e-5)


@check
def cpu_load_state_dict(info: OptimizerInfo) -> str:
    """A state that was saved with fused or capturable is refused."""
    return refuses(info, "fused", "capturable")


# Steps without effect


@check
def step_is_noop_when_params_have_no_grad(info: OptimizerInfo) -> None:
    """Without gradients a step moves nothing, begins no state and returns what the closure did."""
    for kwargs, _ in setups(info):
        params = [torch.randn(2, 3) for _ in range(2)]
        before = copy.deepcopy(params)
        optimizer = info.optim_cls(params, **kwargs)
        assert optimizer.step(lambda: torch.tensor([1.0])) == 1
        same(params, before)
        assert not optimizer.state


@check
def step_is_noop_for_zero_grads(info: OptimizerInfo) -> None:
    """Gradients that are all zero move nothing, but by weight decay."""
    for kwargs, _ in setups(info):
        param = torch.randn(5, 1, requires_grad=True)
        before = param.detach().clone()
        optimizer = info.optim_cls([param], **kwargs)
        param.grad = torch.zeros_like(param)
        optimizer.step(lambda: torch.tensor([1.0]))
        decay = kwargs.get("weight_decay", 0.0) + own_decay(optimizer)
        expected = before - float(kwargs.get("lr", 1.0)) * decay * before
        assert_close(param.detach(), expected)
        if not decay:
            same(param.detach(), before)


@check
def grads_are_never_inplaced_into(info: OptimizerInfo) -> None:
    """A step writes nothing into the gradients, with maximize and weight_decay neither."""
    for kwargs, problem in setups(info):
        optimizer = info.optim_cls(problem.params, **kwargs)
        for _ in range(3):
            problem.backward(optimizer)
            before = [(p.grad, p.grad._version, p.grad.clone()) for p in problem.params]
            optimizer.step()
            for p, (grad, version, value) in zip(problem.params, before, strict=True):
                assert p.grad is grad
                assert grad._version == version
                same(grad, value)


@check
def optimizer_can_be_printed(info: OptimizerInfo) -> None:
    """It prints its groups and their options."""
    for kwargs, problem in setups(info):
        text = repr(info.optim_cls(problem.params, **kwargs))
        assert re.search(r"Parameter Group 0\n\s+lr: .*\n\s+maximize: .*\n\s+weight_decay: ", text)


# States


def named_or_not(problem: Line, *, named: bool) -> Any:
    return problem.named if named else problem.params


def crossing_is_refused(info: OptimizerInfo, saved: Any, *, named: bool) -> bool:
    """Whether these states do not go between named and unnamed parameters; then it has seen that they are refused."""
    other = info.optim_cls(named_or_not(Line(), named=named))
    if not isinstance(other, MetaSGD):
        return False
    before = snapshot(other)
    with pytest.raises(ValueError, match=r"the state is of the rule .*but this optimizer has"):
        other.load_state_dict(saved)
    same(snapshot(other), before)
    return True


@check
def state_dict_deterministic(info: OptimizerInfo) -> str | None:
    """A loaded optimizer, with or without names, goes on in step with its source, and their states stay equal."""
    reason = None
    for first, second in itertools.product((True, False), repeat=2):
        for kwargs, problem in setups(info):
            optimizer = info.optim_cls(named_or_not(problem, named=first), **kwargs)
            problem.train(optimizer, 4)
            saved = copy.deepcopy(optimizer.state_dict())
            if first != second and crossing_is_refused(info, saved, named=second):
                reason = "names"
                continue
            other = copy.deepcopy(problem)
            loaded = info.optim_cls(named_or_not(other, named=second), **copy.deepcopy(kwargs))
            loaded.load_state_dict(saved)
            for _ in range(4):
                problem.train(optimizer, 1)
                other.train(loaded, 1)
                same(other.params, problem.params)
            states = [copy.deepcopy(one.state_dict()) for one in (loaded, optimizer)]
            for state in states:
                for group in state["param_groups"]:
                    group.pop("param_names", None)
            same(*states)
            # A parameter that is in two groups has one number.
            loaded.param_groups.extend(loaded.param_groups)
            twice = loaded.state_dict()["param_groups"]
            assert twice[0]["params"] == twice[1]["params"] == [0, 1]
    return reason


@check
def can_load_older_state_dict(info: OptimizerInfo) -> None:
    """A state without flags that came later loads; one without an option that there always was is refused by name."""
    for kwargs, problem in setups(info):
        optimizer = info.optim_cls(problem.params, **kwargs)
        problem.train(optimizer, 3)
        saved = copy.deepcopy(optimizer.state_dict())
        for flag in info.not_og_supported_flags:
            saved["param_groups"][0].pop(flag, None)
        optimizer.load_state_dict(saved)
        problem.train(optimizer, 1)
        for option in ("lr", "weight_decay", "maximize"):
            lacking = copy.deepcopy(saved)
            del lacking["param_groups"][0][option]
            before = snapshot(optimizer)
            with pytest.raises(ValueError, match=f"has no '{option}'"):
                optimizer.load_state_dict(lacking)
            same(snapshot(optimizer), before)


@check
def can_load_from_to_named_state_dict(info: OptimizerInfo) -> str | None:
    """States go between optimizers of named and unnamed parameters, and the names of either are kept."""
    reason = None
    for first, second in itertools.product((True, False), repeat=2):
        for kwargs, problem in setups(info):
            optimizer = info.optim_cls(named_or_not(problem, named=first), **kwargs)
            problem.train(optimizer, 3)
            saved = copy.deepcopy(optimizer.state_dict())
            if first != second and crossing_is_refused(info, saved, named=second):
                reason = "names"
                continue
            loaded = info.optim_cls(named_or_not(problem, named=second), **kwargs)
            loaded.load_state_dict(saved)
            problem.train(loaded, 1)
            names = loaded.state_dict()["param_groups"][0].get("param_names")
            assert names == (["weight", "bias"] if first or second else None)
    return reason


@check
def save_load_equality_with_weights_only(info: OptimizerInfo) -> None:
    """torch.load gives back the saved state, also with weights_only=True, and it loads."""
    for named in (True, False):
        for kwargs, problem in setups(info):
            optimizer = info.optim_cls(named_or_not(problem, named=named), **kwargs)
            problem.train(optimizer, 3)
            saved = optimizer.state_dict()
            file = io.BytesIO()
            torch.save(saved, file)
            for weights_only in (True, False):
                file.seek(0)
                read = torch.load(file, weights_only=weights_only)
                same(read, saved)
            optimizer.load_state_dict(read)
            same(optimizer.state_dict(), read)


@check
def load_nontensor_step(info: OptimizerInfo) -> str:
    """A step counter, or any other tensor of the state, that is a number is refused; no version ever wrote one."""
    for kwargs, problem in setups(info):
        optimizer = info.optim_cls(problem.params, **kwargs)
        problem.train(optimizer, 3)
        saved = optimizer.state_dict()
        scalars = [(i, key) for i, own in saved["state"].items() for key, value in own.items() if value.dim() == 0]
        assert scalars
        for i, key in scalars:
            damaged = copy.deepcopy(saved)
            damaged["state"][i][key] = damaged["state"][i][key].item()
            before = snapshot(optimizer)
            with pytest.raises(ValueError, match=f"must be a dict of tensors, but {key!r} is a"):
                optimizer.load_state_dict(damaged)
            same(snapshot(optimizer), before)
    return REFUSED


@check
@needs_gpus(1)
def state_dict_with_cuda_params(info: OptimizerInfo) -> None:
    """A state from the CPU loads for parameters on a GPU, is not changed by that, and goes on alike."""
    for kwargs, problem in setups(info):
        optimizer = info.optim_cls(problem.params, **kwargs)
        problem.train(optimizer, 3)
        other = copy.deepcopy(problem)
        other.weight, other.bias, other.x = [t.detach().cuda() for t in (other.weight, other.bias, other.x)]
        for p in other.params:
            p.requires_grad_()
        saved = copy.deepcopy(optimizer.state_dict())
        untouched = copy.deepcopy(saved)
        loaded = info.optim_cls(other.params, **kwargs)
        loaded.load_state_dict(saved)
        same(saved, untouched)
        assert all(value.is_cuda for p in other.params for value in loaded.state[p].values())
        for _ in range(5):
            problem.train(optimizer, 1)
            other.train(loaded, 1)
        assert_close([p.cpu() for p in other.params], problem.params, rtol=1e-4, atol=1e-5)


@check
def non_empty_state(info: OptimizerInfo) -> str | None:
    """After a step each parameter has a state, unless the rule remembers nothing."""
    reason = None
    for kwargs, problem in setups(info):
        optimizer = info.optim_cls(problem.params, **kwargs)
        problem.train(optimizer, 1)
        assert list(optimizer.state) == problem.params
        begun = optimizer.rule.init_state({name: p.detach() for name, p in zip("01", problem.params, strict=True)})
        for name, p in zip("01", problem.params, strict=True):
            assert set(optimizer.state[p]) >= set(begun.per_param[name])
        if not any(begun.per_param.values()):
            reason = "stateless"
        else:
            assert all(optimizer.state[p] for p in problem.params)
    return reason


# Hooks


def remember(optimizer: RuleOptimizer) -> None:
    optimizer.state["test"] = 1


def forget(optimizer: RuleOptimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    state_dict["ran_state_dict_pre_hook"] = state_dict["state"].pop("test", None) == 1
    return state_dict


def set_lr_in_place(optimizer: RuleOptimizer, state_dict: dict[str, Any]) -> None:
    state_dict["param_groups"][0]["lr"] = 0.2


def set_lr_in_a_copy(optimizer: RuleOptimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    changed = copy.deepcopy(state_dict)
    changed["param_groups"][0]["lr"] = 0.3
    return changed


def record_lr(optimizer: RuleOptimizer) -> None:
    optimizer.state["lr_seen"] = optimizer.param_groups[0]["lr"]


@check
def state_dict_pre_hook(info: OptimizerInfo) -> None:
    """What a hook before state_dict puts into the state is in it."""
    for kwargs, problem in setups(info):
        optimizer = info.optim_cls(problem.params, **kwargs)
        optimizer.register_state_dict_pre_hook(remember)
        assert optimizer.state_dict()["state"]["test"] == 1


@check
def state_dict_post_hook(info: OptimizerInfo) -> None:
    """A hook after state_dict sees all of it, the rule included, and what it returns is what is saved."""
    for kwargs, problem in setups(info):
        optimizer = info.optim_cls(problem.params, **kwargs)
        seen: list[Any] = []
        optimizer.register_state_dict_post_hook(lambda _, state, seen=seen: seen.append(copy.deepcopy(state)))
        optimizer.register_state_dict_post_hook(forget)
        saved = optimizer.state_dict()
        assert saved.pop("ran_state_dict_pre_hook") is False
        same(seen, [saved])
        optimizer.register_state_dict_post_hook(lambda *_: {"other": 1})
        assert optimizer.state_dict() == {"other": 1}


@check
def state_dict_pre_post_hook(info: OptimizerInfo) -> None:
    """Hooks before and after state_dict see each other's work."""
    for kwargs, problem in setups(info):
        optimizer = info.optim_cls(problem.params, **kwargs)
        optimizer.register_state_dict_pre_hook(remember)
        optimizer.register_state_dict_post_hook(forget)
        saved = optimizer.state_dict()
        assert "test" not in saved["state"]
        assert saved["ran_state_dict_pre_hook"] is True


@check
def load_state_dict_pre_hook_and_prepend(info: OptimizerInfo) -> None:
    """Hooks before load_state_dict change what is loaded, in the order asked for, and before it is looked at."""
    for kwargs, problem in setups(info):
        optimizer = info.optim_cls(problem.params, **kwargs)
        saved = optimizer.state_dict()
        optimizer.register_load_state_dict_pre_hook(set_lr_in_place)
        optimizer.load_state_dict(saved)
        assert optimizer.param_groups[0]["lr"] == 0.2
        optimizer.register_load_state_dict_pre_hook(set_lr_in_a_copy, prepend=True)
        optimizer.load_state_dict(saved)
        assert optimizer.param_groups[0]["lr"] == 0.2
        optimizer.register_load_state_dict_pre_hook(set_lr_in_a_copy)
        optimizer.load_state_dict(saved)
        assert optimizer.param_groups[0]["lr"] == 0.3
        optimizer.register_load_state_dict_pre_hook(lambda _, state: state["inside"], prepend=True)
        optimizer.load_state_dict({"inside": saved})


@check
def load_state_dict_post_hook(info: OptimizerInfo) -> None:
    """A hook after load_state_dict sees the state restored, the rule included."""
    for kwargs, problem in setups(info):
        optimizer = info.optim_cls(problem.params, **kwargs)
        problem.train(optimizer, 2)
        saved = copy.deepcopy(optimizer.state_dict())
        problem.train(optimizer, 1)
        seen: list[Any] = []
        optimizer.register_load_state_dict_post_hook(
            lambda opt, seen=seen: seen.append(copy.deepcopy(opt.state_dict()))
        )
        optimizer.load_state_dict(saved)
        same(seen, [saved])


@check
def load_state_dict_pre_post_hook(info: OptimizerInfo) -> None:
    """A hook after load_state_dict sees what one before it did."""
    for kwargs, problem in setups(info):
        optimizer = info.optim_cls(problem.params, **kwargs)
        optimizer.register_load_state_dict_pre_hook(set_lr_in_a_copy)
        optimizer.register_load_state_dict_post_hook(record_lr)
        optimizer.load_state_dict(optimizer.state_dict())
        assert optimizer.state["lr_seen"] == 0.3


@check
def step_post_hook(info: OptimizerInfo) -> None:
    """A hook after step runs at each step until it is removed."""
    for kwargs, problem in setups(info):
        optimizer = info.optim_cls(problem.params, **kwargs)
        before, moved = copy.deepcopy(problem.params), []
        handle = optimizer.register_step_post_hook(
            lambda *_, p=problem, b=before, m=moved: m.append(not torch.equal(p.weight, b[0]))
        )
        problem.train(optimizer, 2)
        assert moved == [True, True]
        handle.remove()
        problem.train(optimizer, 1)
        assert len(moved) == 2


@check
def step_pre_hook(info: OptimizerInfo) -> None:
    """A hook before step runs at each step until it is removed, and may change the arguments."""
    for kwargs, problem in setups(info):
        optimizer = info.optim_cls(problem.params, **kwargs)
        calls: list[str] = []
        handle = optimizer.register_step_pre_hook(lambda *_, c=calls: c.append("hook"))
        problem.train(optimizer, 2)
        assert calls == ["hook"] * 2
        handle.remove()
        optimizer.register_step_pre_hook(lambda opt, args, _, c=calls: ((opt, lambda: c.append("closure")), {}))
        optimizer.step()
        assert calls == ["hook", "hook", "closure"]


@check
def step_all_hooks(info: OptimizerInfo) -> None:
    """Global and own hooks around step run in torch's order."""
    for kwargs, problem in setups(info):
        optimizer, other = info.optim_cls(problem.params, **kwargs), SGD(problem.params)
        calls: list[int] = []

        def record(number: int, calls: list[int] = calls) -> Any:
            return lambda *_: calls.append(number)

        with contextlib.ExitStack() as handles:
            handles.callback(register_optimizer_step_pre_hook(record(0)).remove)
            handles.callback(register_optimizer_step_post_hook(record(3)).remove)
            for one in (optimizer, other):
                handles.callback(one.register_step_pre_hook(record(1)).remove)
                handles.callback(one.register_step_post_hook(record(2)).remove)
            for one in (optimizer, other, optimizer):
                one.step()
            assert calls == [0, 1, 2, 3] * 3
        optimizer.step()
        other.step()
        assert len(calls) == 12


# Copies


@check
def deepcopy_copies_all_public_attrs(info: OptimizerInfo) -> None:
    """A deepcopy has every attribute."""
    for kwargs, problem in setups(info):
        optimizer = info.optim_cls(problem.params, **kwargs)
        problem.train(optimizer, 3)
        copied = copy.deepcopy(optimizer)
        assert {key for key in vars(copied) if key[0] != "_"} == {key for key in vars(optimizer) if key[0] != "_"}
        assert set(vars(copied)) >= {"rule", "guard", "_keys"}


@check
def adamw_serialization(info: OptimizerInfo) -> None:
    """A pickle brings back the rule's class and sizes, and a state of another rule is refused."""
    others = {"SGDRule": SGDRule(0.5), "LSTMRule": learned("moments")}
    for kwargs, problem in setups(info):
        optimizer = info.optim_cls(problem.params, **kwargs)
        problem.train(optimizer, 2)
        back = pickle.loads(pickle.dumps(optimizer))
        assert type(back) is type(optimizer)
        assert back.rule.described() == optimizer.rule.described()
        assert back.guard == optimizer.guard
        before = snapshot(optimizer)
        for name, rule in others.items():
            state = RuleOptimizer(Line().params, rule).state_dict()
            with pytest.raises(ValueError, match=f"the state is of the rule .*{name}.* but this optimizer has"):
                optimizer.load_state_dict(state)
        same(snapshot(optimizer), before)


@check
def second_order_optims_return_consistent_types(info: OptimizerInfo) -> None:
    """A step returns what its closure did: a tensor, a number or None."""
    for kwargs, problem in setups(info):
        optimizer = info.optim_cls(problem.params, **kwargs)
        value = torch.tensor([10.0])
        assert optimizer.step(lambda value=value: value) is value
        assert optimizer.step(lambda: 10.0) == 10.0
        assert optimizer.step(lambda: None) is None
        assert optimizer.step() is None
