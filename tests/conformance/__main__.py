"""Runs all checks and writes docs/conformance.md."""

import sys

from tests.conformance.table import DOCUMENT, write

if not __debug__:
    sys.exit("the checks are assertions; run without -O")
if failures := write():
    sys.exit("\n".join([*failures, f"{len(failures)} checks failed; nothing was written"]))
print(f"wrote {DOCUMENT}")
