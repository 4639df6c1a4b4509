"""Several processes compute what one does, for every optimizer and every way to spread a model."""

from functools import cache

import pytest
import torch
from torch import multiprocessing
from torch.testing import assert_close

from tests.distributed import workers
from tests.distributed.workers import CASES, SAVED_AFTER, STEPS


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What the processes ended with, by their number, check and optimizer."""
    folder = tmp_path_factory.mktemp("distributed")
    try:
        multiprocessing.spawn(workers.work, (folder,), nprocs=4)
    except multiprocessing.ProcessExitedException as error:
        last = (folder / f"{error.error_index}.stderr").read_text()[-1000:]
        raise RuntimeError(f"{error}: {' | '.join(last.splitlines())}") from error
    by_rank = [torch.load(folder / f"{rank}.pt") for rank in range(4)]
    return {case: [each[case] for each in by_rank[: case[0]]] for case in CASES}


alone, poisoned_alone = cache(workers.alone), cache(workers.poisoned_alone)


def cases(*checks):
    """Parametrises a test with the cases of these checks, and their outcomes with them."""
    chosen = [case for case in CASES if case[1] in checks]
    return pytest.mark.parametrize("case", chosen, ids=["-".join(map(str, case)) for case in chosen])


def same(outcome, expected):
    assert_close(outcome, expected, rtol=0, atol=1e-9)


def uncounted(entries):
    """States without the count of skipped steps."""
    return {name: {key: value for key, value in own.items() if key != "skipped"} for name, own in entries.items()}


def test_the_mistrusted_rule_is_replaced():
    """So that the comparisons below reach the guard's Adam."""
    assert float(alone("LSTMOptimizer-mistrusted", STEPS)["state"]["0.weight"]["guard.step"]) > 0


@cases("ddp", "fsdp", "hybrid")
def test_steps_equal_those_of_one_process(outcomes, case):
    for outcome in outcomes[case]:
        same(outcome, alone(case[2], STEPS))


@cases("tensor_parallel", "tensor_parallel_and_sharded")
def test_tensor_parallel_steps_equal_those_of_one_process(outcomes, case):
    for outcome in outcomes[case]:
        same(outcome, alone(case[2], STEPS, workers.deep_network))


@cases("poisoned")
def test_one_bad_shard_leaves_the_step_out_everywhere(outcomes, case):
    for outcome in outcomes[case]:
        before, after = outcome["before"], outcome["after"]
        assert (before["skipped"], after["skipped"], outcome["end"]["skipped"]) == (0, 1, 1)
        assert_close(after["params"], before["params"], rtol=0, atol=0)
        assert_close(uncounted(after["state"]), uncounted(before["state"]), rtol=0, atol=0)
        same(outcome["end"], poisoned_alone(case[2])["end"])


@cases("save")
def test_saving_a_distributed_checkpoint_leaves_no_trace(outcomes, case):
    """Also before the first step, where it takes a step of its own to create the state."""
    for outcome in outcomes[case]:
        same(outcome[0], alone(case[2], SAVED_AFTER))
        same(outcome[SAVED_AFTER], alone(case[2], 2 * SAVED_AFTER))


@cases("load", "load_unsharded")
def test_a_distributed_checkpoint_goes_on_in_other_numbers(outcomes, case):
    """Saved by two processes; the rule comes with it. One saved before the first step is a fresh optimizer."""
    for outcome in outcomes[case]:
        same(outcome[0], alone(case[2], SAVED_AFTER))
        same(outcome[SAVED_AFTER], alone(case[2], 2 * SAVED_AFTER))


@cases("full_state", "own_state", "state_of_one")
def test_other_states_of_sharded_parameters_go_on(outcomes, case):
    for outcome in outcomes[case]:
        same(outcome, alone(case[2], 2 * SAVED_AFTER))


@cases("zero")
def test_zero_redundancy_equals_one_process_or_is_refused(outcomes, case):
    """The second half of the steps is that of another optimizer, which has loaded the state of the first."""
    crosses = workers.OPTIMIZERS[case[2]](workers.network().parameters()).rule.scope == "network"
    network_wide = ("RuleOptimizer-network", "RuleOptimizer-map", "HierarchicalRNNOptimizer")
    assert crosses == case[2].startswith(network_wide)
    for outcome in outcomes[case]:
        if crosses:
            assert "use fully_shard instead" in outcome["refused"]
        else:
            expected = alone(case[2], STEPS)
            same(outcome["params"], expected["params"])
            same(uncounted(outcome["state"]), uncounted(expected["state"]))


@cases("zero_in_groups")
def test_zero_redundancy_may_leave_a_process_without_parameters(outcomes, case):
    for outcome in outcomes[case]:
        same(outcome, workers.zero_in_groups(case[2]))
