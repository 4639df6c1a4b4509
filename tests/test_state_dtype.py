"""Cells kept in fewer bits than they are computed in."""

import copy

import pytest
import torch
from torch.testing import assert_close

from learned_optim import LSTMOptimizer, LSTMRule, RuleState, load_checkpoint, save_checkpoint
from learned_optim.state_layout import state_bytes


def rules():
    """A rule whose cells are kept in bfloat16, and one with the same weights that keeps them whole."""
    torch.manual_seed(0)
    whole = LSTMRule(["moments", "step_count"], hidden_size=4)
    half = LSTMRule(["moments", "step_count"], hidden_size=4, state_dtype="bfloat16")
    half.load_state_dict(whole.state_dict())
    return half, whole


def rounded(state):
    """The cells of a state as bfloat16 has them."""
    return RuleState(
        {
            name: {
                key: value.bfloat16().float() if key.startswith(("hidden", "cell")) else value
                for key, value in own.items()
            }
            for name, own in state.per_param.items()
        },
        state.shared,
    )


def test_it_is_the_rule_whose_cells_are_rounded_after_each_step():
    half, whole = rules()
    params = {"a": torch.randn(3, 2), "b": torch.randn(5)}
    kept, reference = half.init_state(params), whole.init_state(params)
    for step in range(20):
        grads = {name: torch.randn_like(p) * 10 ** -(step % 3) for name, p in params.items()}
        updates, kept = half(grads, kept, params)
        expected, reference = whole(grads, reference, params)
        reference = rounded(reference)
        assert all(torch.equal(updates[name], expected[name]) for name in params)
        for name, own in kept.per_param.items():
            for key, value in own.items():
                assert value.dtype == (torch.bfloat16 if key.startswith(("hidden", "cell")) else torch.float32)
                assert torch.equal(value.float(), reference.per_param[name][key])


def test_the_eager_driver_keeps_cells_so_and_goes_on_from_a_saved_state():
    half, _ = rules()
    start = torch.randn(6)
    grads = torch.randn(6, 6)

    def run(p, optimizer, steps):
        for grad in grads[steps]:
            p.grad = grad.clone()
            optimizer.step()

    p = torch.nn.Parameter(start.clone())
    optimizer = LSTMOptimizer([p], rule=half)
    run(p, optimizer, slice(3))
    saved, place = copy.deepcopy(optimizer.state_dict()), p.detach().clone()
    run(p, optimizer, slice(3, 6))
    assert optimizer.state[p]["cell_0"].dtype == torch.bfloat16

    q = torch.nn.Parameter(place)
    again = LSTMOptimizer([q], rule=copy.deepcopy(half))
    again.load_state_dict(saved)
    run(q, again, slice(3, 6))
    assert torch.equal(p, q)
    with pytest.raises(ValueError, match="bfloat16"):
        LSTMOptimizer([torch.nn.Parameter(start)], rule=rules()[1]).load_state_dict(saved)


def test_it_halves_the_memory_of_the_cells():
    params = {"p": torch.zeros(10)}
    assert state_bytes(LSTMRule(), None, params) == 10 * 320
    assert state_bytes(LSTMRule(state_dtype=torch.bfloat16), None, params) == 10 * 160


def test_a_checkpoint_keeps_it_and_an_optimizer_may_choose_it(tmp_path):
    save_checkpoint(tmp_path / "half.safetensors", rules()[0])
    assert load_checkpoint(tmp_path / "half.safetensors").state_dtype == torch.bfloat16
    p = torch.nn.Parameter(torch.zeros(3))
    chosen = LSTMOptimizer([p], checkpoint="mnist-mlp", state_dtype=torch.bfloat16)
    p.grad = torch.ones(3)
    chosen.step()
    assert chosen.state[p]["hidden_0"].dtype == torch.bfloat16
    assert_close(p, run_whole(), rtol=0.02, atol=0)


def run_whole():
    p = torch.nn.Parameter(torch.zeros(3))
    p.grad = torch.ones(3)
    LSTMOptimizer([p], checkpoint="mnist-mlp").step()
    return p


@pytest.mark.parametrize("given", ["int8", torch.int32, "bfloat", 16])
def test_what_is_no_floating_point_dtype_is_refused(given):
    with pytest.raises(ValueError, match=r"state_dtype must be a floating-point dtype .* got"):
        LSTMRule(state_dtype=given)
    with pytest.raises(ValueError, match="state_dtype must be a floating-point dtype"):
        LSTMOptimizer([torch.nn.Parameter(torch.zeros(3))], checkpoint="mnist-mlp", state_dtype=given)


def test_it_is_not_for_a_rule_that_is_given():
    with pytest.raises(ValueError, match="make the rule with it instead"):
        LSTMOptimizer([torch.nn.Parameter(torch.zeros(3))], rule=LSTMRule(), state_dtype="bfloat16")
