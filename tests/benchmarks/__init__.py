"""How fast and how lean the package is beside its peers; see ``python -m tests.benchmarks --help``."""
