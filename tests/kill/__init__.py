"""Training that is killed again and again, and must come out as if nothing had happened: ``python -m tests.kill``."""
