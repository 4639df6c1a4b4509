"""Checks with torch.compile, on backends that only trace."""

from __future__ import annotations

from typing import Any

import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.optim.lr_scheduler import ExponentialLR
from torch.testing._internal.common_optimizers import OptimizerInfo

from tests.conformance.registry import Line, check, same, snapshot
from tests.specs import small_problem


def fresh_counter() -> Any:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    return CompileCounterWithBackend("eager")


@check
def compiled_model(info: OptimizerInfo) -> None:
    """A compiled model trains as the model itself does."""
    eager, problem = small_problem(dtype=torch.float32), small_problem(dtype=torch.float32)
    counter = fresh_counter()
    model = torch.compile(problem.model, backend=counter)
    optimizer, expected = info.optim_cls(model.parameters()), info.optim_cls(eager.model.parameters())
    for _ in range(4):
        for net, one in ((model, optimizer), (eager.model, expected)):
            one.zero_grad()
            (net(eager.x) - eager.y).square().mean().backward()
            one.step()
    same(list(problem.model.parameters()), list(eager.model.parameters()))
    assert counter.frame_count == 1


@check
def compiled_rule(info: OptimizerInfo) -> None:
    """The rule compiles into one graph without a break, and computes the same."""
    problem = small_problem(dtype=torch.float32)
    rule = info.optim_cls(problem.model.named_parameters()).rule
    params = problem.params
    counter = fresh_counter()
    compiled = torch.compile(rule, backend=counter, fullgraph=True)
    torch.manual_seed(0)
    state = rule.init_state(params)
    with torch.no_grad():
        for _ in range(4):
            grads = {name: torch.randn_like(p) for name, p in params.items()}
            updates, new = rule(grads, state, params)
            its_updates, its_state = compiled(grads, state, params)
            same([its_updates, *its_state], [updates, *new])
            state = new
    assert counter.frame_count == 1


@check
def compiled_step(info: OptimizerInfo) -> None:
    """A compiled step with a scheduled tensor lr is one graph, equals the eager one, and compiles twice in all."""
    counter = fresh_counter()
    ran = []
    for compiling in (False, True):
        problem = Line()
        optimizer = info.optim_cls(problem.params, lr=torch.tensor(0.5))
        scheduler = ExponentialLR(optimizer, 0.9)
        step = torch.compile(optimizer.step, backend=counter) if compiling else optimizer.step
        for i in range(10):
            problem.backward(optimizer)
            with torch._dynamo.config.patch(error_on_recompile=i >= 2):
                step()
            scheduler.step()
            if i == 1:
                frames = counter.frame_count
        ran.append(snapshot(optimizer))
    # The eager LSTM multiplies small tensors together and large ones in pieces, which rounds otherwise.
    same(*ran, rtol=1e-5, atol=1e-7)
    assert 0 < frames <= 2  # the first step begins the state
    assert counter.frame_count == frames
    breaks = torch._dynamo.utils.counters["graph_break"]
    assert all("optim/lr_scheduler.py" in reason for reason in breaks), breaks  # torch's own
