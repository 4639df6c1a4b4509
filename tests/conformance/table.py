"""The table of checks and optimizers, and the document that holds it."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path

import pytest
import torch

from tests.conformance import compiled, further, torchs
from tests.conformance.infos import COLUMNS, OPTIMIZERS
from tests.conformance.registry import CHECKS, OK, REASONS, REFUSED, gpu_reason, missing_gpus

DOCUMENT = Path(__file__).parents[2] / "docs" / "conformance.md"

TORCH = [
    "adamw_serialization",
    "can_load_from_to_named_state_dict",
    "can_load_older_state_dict",
    "complex",
    "complex_2d",
    "cpu_load_state_dict",
    "deepcopy_copies_all_public_attrs",
    "defaults_changed_to_foreach",
    "errors",
    "foreach_large_tensor",
    "foreach_matches_forloop",
    "forloop_goes_right_direction",
    "forloop_goes_right_direction_multigpu",
    "fused_cpu_matches_cuda",
    "fused_does_not_step_if_foundinf",
    "fused_error_on_params_on_meta",
    "fused_large_tensor",
    "fused_matches_forloop",
    "grads_are_never_inplaced_into",
    "load_nontensor_step",
    "load_state_dict_post_hook",
    "load_state_dict_pre_hook_and_prepend",
    "load_state_dict_pre_post_hook",
    "mixed_device_dtype",
    "non_empty_state",
    "optim_infos_do_not_specify_global_cliquey_kwargs",
    "optimizer_can_be_printed",
    "param_group_with_lrscheduler_goes_right_direction",
    "param_groups_lr",
    "param_groups_weight_decay",
    "peak_memory_foreach",
    "rosenbrock_sparse",
    "save_load_equality_with_weights_only",
    "second_order_optims_return_consistent_types",
    "set_default_dtype_works_with_foreach",
    "state_dict_deterministic",
    "state_dict_post_hook",
    "state_dict_pre_hook",
    "state_dict_pre_post_hook",
    "state_dict_with_cuda_params",
    "step_all_hooks",
    "step_is_noop_for_zero_grads",
    "step_is_noop_when_params_have_no_grad",
    "step_post_hook",
    "step_pre_hook",
    "tensor_lr",
]
"""All tests of ``TestOptimRenewed`` in torch's ``test/test_optim.py``, without their prefix ``test_``."""

FAILURES = (Exception, pytest.fail.Exception)

SECTIONS = {
    "Torch's own checks": torchs,
    "Further checks": further,
    "With torch.compile": compiled,
}

HEAD = """# Conformance

PyTorch's checks of its own optimizers, and more, run over ours. `python -m tests.conformance` runs them all and writes
this document, unless one fails; `tests/conformance` runs them with the other tests and compares.

- **ok**: it holds.
- **refused**: the check asks for something that we do not do, and has seen that an error says so and nothing changes.
"""


@functools.cache
def outcome(name: str, optimizer: str) -> str:
    """Runs a check on an optimizer.

    Returns:
        What goes into its cell.

    Raises:
        AssertionError: The optimizer fails the check; or whatever else the check raises.
    """
    check = CHECKS[name]
    if missing_gpus(check):
        return gpu_reason(check)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("error")
        torch.manual_seed(0)
        result = check(OPTIMIZERS[optimizer]) or gpu_reason(check) or OK
    assert result in (OK, REFUSED, *REASONS), result
    return result


def document() -> str:
    """The whole document, every cell of it from a run."""
    lines = [HEAD.strip()]
    lines += [f"- **{reason}**: {why}" for reason, why in REASONS.items()]
    lines += ["", "The columns:", "", *[f"- **{name}**: {meaning}" for name, meaning in COLUMNS.items()]]
    for section, module in SECTIONS.items():
        lines += ["", f"## {section}", "", module.__doc__.replace("``", "`"), ""]
        lines += [f"| check | {' | '.join(OPTIMIZERS)} |", "|---" * (len(OPTIMIZERS) + 1) + "|"]
        for name, check in CHECKS.items():
            if check.__module__ == module.__name__:
                cells = " | ".join(outcome(name, optimizer) for optimizer in OPTIMIZERS)
                lines.append(f"| `{name}`: {check.__doc__.replace('``', '`')} | {cells} |")
    return "\n".join(lines) + "\n"


def write() -> list[str]:
    """Runs every check and writes the document if all hold.

    Returns:
        The failures, in words.
    """
    failures = []
    for name in CHECKS:
        for optimizer in OPTIMIZERS:
            try:
                outcome(name, optimizer)
            except FAILURES as error:
                failures.append(f"{name}, {optimizer}: {type(error).__name__}: {error}")
    if not failures:
        DOCUMENT.write_text(document())
    return failures
