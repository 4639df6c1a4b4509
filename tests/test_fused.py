"""The kernel for GPUs, run on the CPU by Triton's interpreter, and on a GPU where there is one."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close

from learned_optim import Guard, LSTMOptimizer, LSTMRule, fused
from learned_optim.fused import fusible
from learned_optim.rules import lstm

RULES = {
    "the paper's": {},
    "moments": {"features": "moments", "hidden_size": 10, "num_layers": 1, "shortcut": True},
    "several features": {"features": ["moments", "magnitude", "step_count", "time_scales"], "hidden_size": 11},
    "moves what was never seen": {"move_unseen": True, "features": "plain", "bounded": True},
    "bfloat16": {"state_dtype": "bfloat16"},
}


def trained(device, name, by_kernel):
    """Parameters and state after some steps, of gradients that are zero here and there, and once not finite."""
    torch.manual_seed(0)
    rule = LSTMRule(**RULES[name])
    torch.nn.init.normal_(rule.head.weight)
    params = [torch.nn.Parameter(torch.randn(shape).to(device)) for shape in ((13, 11), (), (70,), (0, 3))]
    optimizer = LSTMOptimizer(params, rule=rule, guard=Guard())
    for step in range(6):
        for p in params:
            values = torch.randn(p.shape, generator=torch.Generator().manual_seed(step)) * 10.0 ** (step - 3)
            p.grad = (values * (values > 0)).to(device)
        if step == 3:
            params[0].grad[0, 0] = torch.nan
        if by_kernel:
            grads = {str(i): p.grad for i, p in enumerate(params)}
            states = {
                str(i): {k: v for k, v in optimizer.state[p].items() if "." not in k} for i, p in enumerate(params)
            }
            with torch.no_grad():
                assert step == 0 or fusible(rule, grads, states)
        optimizer.step()
    assert optimizer.skipped_steps == 1
    return [p.detach().cpu() for p in params], [
        {key: value.float().cpu() for key, value in optimizer.state[p].items()} for p in params
    ]


def compare(device, name, tf32):
    """In a process of its own: Triton looks at the environment when it is imported."""
    torch.backends.cudnn.allow_tf32 = tf32
    found, their_states = trained(device, name, True)
    lstm.fusible = lambda *_: False
    expected, states = trained("cpu", name, False)
    # A rounding that falls the other way is one bit of eight, or of ten.
    half = name == "bfloat16" or tf32
    assert_close(found, expected, rtol=0, atol=1e-3 if half else 1e-5)
    assert_close(their_states, states, rtol=0.02 if half else 1e-4, atol=1e-2 if half else 1e-5)


needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="Triton is not installed; the test extra brings it on Linux with x86_64 alone",
)


@needs_triton
@pytest.mark.parametrize(("device", "tf32"), [("cpu", False), ("cuda", False), ("cuda", True)])
@pytest.mark.parametrize("name", RULES)
def test_the_kernel_is_the_rule(name, device, tf32):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device; without one the same kernel is tested in Triton's interpreter")
    code = f"from tests.test_fused import compare; compare({device!r}, {name!r}, {tf32!r})"
    environment = os.environ | {"TRITON_INTERPRET": "1" if device == "cpu" else "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


@needs_triton
@pytest.mark.parametrize("precision", [name for name, shape in fused.SHAPES.items() if shape.shared])
def test_the_kernel_compiles_for_a_gpu(precision):
    """What the interpreter takes need not be what the compiler takes; this needs no GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from learned_optim.kernels import lstm_cells

    shape = fused.SHAPES[precision]
    sizes = {"INPUTS": 2, "SIZE": 20, "UNITS": 32, "LAYERS": 2, "BLOCK": shape.block}
    flags = {"LOG_SIGN": True, "SHORTCUT": True, "BOUNDED": True, "MOVE_UNSEEN": False}
    constants = {**sizes, **flags, "PRECISION": precision}
    types = {"number": "i32", "where": "*i1"}
    signature = {key: "constexpr" if key in constants else types.get(key, "*fp32") for key in lstm_cells.arg_names}
    source = ASTSource(fn=lstm_cells, signature=signature, constexprs=constants)
    options = {"num_warps": shape.warps, "num_stages": shape.stages, "enable_fp_fusion": True}
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert made.asm["cubin"]
    assert made.metadata.shared <= shape.shared


def test_what_it_cannot_take_is_left_to_the_rule(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr("learned_optim.fused._kernel", lambda: "a kernel")
    params = {"p": torch.zeros(3, 4)}

    def taken(rule, dtype=torch.float32, **changed):
        grads = {"p": torch.ones(3, 4, dtype=dtype)}
        with torch.no_grad():
            return fusible(rule, grads, {"p": rule.init_state(params).per_param["p"] | changed})

    assert taken(LSTMRule())
    assert taken(LSTMRule(), torch.bfloat16)
    assert not taken(LSTMRule(normalised=True))
    assert not taken(LSTMRule(num_layers=3))
    assert not taken(LSTMRule(hidden_size=30))
    assert not taken(LSTMRule().double())
    assert not taken(LSTMRule(), cell_0=torch.zeros(20, 3, 4).permute(1, 2, 0))
    assert not fusible(LSTMRule(), {"p": torch.ones(3, 4)}, LSTMRule().init_state(params).per_param)  # with a graph
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert not taken(LSTMRule())
