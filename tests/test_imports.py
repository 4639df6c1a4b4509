"""Who may import whom, and what `import learned_optim` costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = ["learned_optim", "meta_init", "lightning_modules"]
INSIDE = [
    "types", "eager", "together", "entry", "seeds", "reduction", "rule", "sharding", "cells", "features", "horizon",
    "secants", "invariance", "compiling", "chunks",
    "kernels", "fused", "rules", "guard", "captured", "pullback", "flat_memory", "unroll", "sampled", "joined",
    "normalisation", "pickles", "data", "checkpoint", "group_options", "state_layout", "devices", "moving",
    "rule_optimizer", "optimizers", "higher_bridge", "problems", "instances", "imitation", "race",
]  # fmt: skip


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            if node.module == "learned_optim":
                yield from (
                    f"learned_optim.{alias.name}" for alias in node.names if (path.parent / f"{alias.name}.py").exists()
                )
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


FILES = [path for package in ORDER for path in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_packages_import_only_those_before_them(path):
    package = path.relative_to(ROOT).parts[0]
    for module in imported(path):
        head = module.partition(".")[0]
        if head in ORDER:
            assert ORDER.index(head) <= ORDER.index(package), f"{path} imports {module}"
        assert head != "torchvision"
        if package != "lightning_modules":
            assert head not in ("pytorch_lightning", "lightning")
        if head == "higher":
            assert path.name == "higher_bridge.py"


@pytest.mark.parametrize("path", [p for p in FILES if p.is_relative_to(ROOT / "learned_optim")], ids=lambda p: p.stem)
def test_learned_optim_imports_only_downwards(path):
    part = path.relative_to(ROOT / "learned_optim").parts[0].removesuffix(".py")
    if part in ("__init__", "checkpoints"):
        return
    for module in imported(path):
        pieces = module.split(".")
        if pieces[0] == "learned_optim" and len(pieces) > 1:
            assert INSIDE.index(pieces[1]) <= INSIDE.index(part), f"{path} imports {module}"


def test_meta_init_uses_public_names_only():
    for path in (ROOT / "meta_init").rglob("*.py"):
        assert not [module for module in imported(path) if module.startswith("learned_optim.")], path


def test_import_needs_neither_lightning_nor_higher_nor_data():
    blocked = ["higher", "pytorch_lightning", "lightning", "torchvision", "torchmeta", "matplotlib", "sklearn"]
    code = f"""
import sys
for name in {blocked}:
    sys.modules[name] = None
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *args: None if name in {blocked} else find(name, *args)
import learned_optim, meta_init, lightning_modules
assert not hasattr(learned_optim, "inner_loop")
learned_optim.LSTMRule()
"""
    environment = {"PATH": "", "PYTHONPATH": str(ROOT), "HOME": "/nonexistent"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
