"""What several files of tests use."""

import pytest

from meta_init.datasets import pictures

collect_ignore = ["benchmarks"]  # it needs packages that the tests do not, and measures


@pytest.fixture
def opened(monkeypatch):
    """The names of the pictures that were decoded."""
    files = []
    read = pictures._read
    monkeypatch.setattr(pictures, "_read", lambda file, *rest: files.append(file.name) or read(file, *rest))
    return files
