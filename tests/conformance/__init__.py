"""PyTorch's conformance checks of optimizers, run over ours; ``python -m tests.conformance`` writes their table."""

import pytest

pytest.register_assert_rewrite(*[f"tests.conformance.{name}" for name in ("registry", "torchs", "further", "compiled")])
