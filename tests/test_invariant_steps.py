"""How invariant steps were chosen: the page says what the file says, and the bundled rule has what was chosen."""

import importlib.util
import json
from pathlib import Path

from learned_optim import load_checkpoint

ROOT = Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location("invariant_steps", ROOT / "docs" / "examples" / "invariant_steps.py")
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)


def found():
    return json.loads((ROOT / script.RESULTS / "losses.json").read_text())


def test_the_page_is_made_from_the_file():
    assert (ROOT / script.RESULTS / "README.md").read_text() == script.page(found())


def test_the_bundled_rule_has_the_best_of_them():
    rule = load_checkpoint("hierarchical")
    every = {choice: max(script.ratios(found(), script.named(choice))) for choice in script.CHOICES}
    assert min(every, key=every.get) == (*rule.invariant_steps, rule.invariant_horizon)
