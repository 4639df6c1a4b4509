# make demo and make test are enough on a fresh machine with Python 3.10 or newer: they make .venv first.
PYTHON ?= python3
BIN := .venv/bin
OUT ?= demo
DEMO ?=
NAMES ?=

# Data sets, if there are any: a folder that holds mnist/. One beside the checkout is found by itself.
ifneq ($(wildcard ../shared/data/mnist),)
export LEARNED_OPTIM_DATA ?= $(abspath ../shared/data)
endif
# Keeps freed memory for the next step instead of handing it back to the system each time (glibc).
export MALLOC_MMAP_THRESHOLD_ ?= 1073741824
export MALLOC_TRIM_THRESHOLD_ ?= 4294967296

.PHONY: demo test test-distributed test-gpu test-kill test-torchmeta benchmarks lint types clean

.venv/installed: setup.cfg constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test,demo]"
	touch $@

demo: .venv/installed
	$(BIN)/python docs/examples/race.py --out $(OUT) $(DEMO)
	$(BIN)/python docs/examples/sine.py --out $(OUT) $(DEMO)

test: .venv/installed
	$(BIN)/python -m pytest

# With 2 and 4 processes; part of make test.
test-distributed: .venv/installed
	$(BIN)/python -m pytest tests/distributed

# What is skipped without a GPU; part of make test where there is one.
test-gpu: .venv/installed
	$(BIN)/python -m pytest tests/test_fused.py tests/test_few_shot_training.py tests/test_lightning.py tests/conformance \
		-k "cuda or gpu or mixed_device or change_of_device"

# Trainings killed at random times 20 times over; make test has a short version.
test-kill: .venv/installed
	$(BIN)/python -m tests.kill

# The real torchmeta, without its dependencies because it asks for a torch below 1.10; in an environment of its own.
.venv-torchmeta/installed: tests/torchmeta/requirements.txt constraints.txt
	$(PYTHON) -m venv .venv-torchmeta
	.venv-torchmeta/bin/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	.venv-torchmeta/bin/python -m pip install --quiet --requirement tests/torchmeta/requirements.txt
	.venv-torchmeta/bin/python -m pip install --quiet --no-deps torchmeta==1.8.0
	touch $@

test-torchmeta: .venv-torchmeta/installed
	.venv-torchmeta/bin/python -m pytest tests/torchmeta

# Speed and memory beside other packages, in an environment of its own; hours. NAMES="sine-1 step" measures only these.
.venv-benchmarks/installed: tests/benchmarks/requirements.txt constraints.txt
	$(PYTHON) -m venv .venv-benchmarks
	.venv-benchmarks/bin/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	.venv-benchmarks/bin/python -m pip install --quiet --requirement tests/benchmarks/requirements.txt
	touch $@

benchmarks: .venv-benchmarks/installed
	.venv-benchmarks/bin/python -m tests.benchmarks $(NAMES)
	.venv-benchmarks/bin/python -m tests.benchmarks --page

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed
	$(BIN)/mypy

clean:
	rm -rf .venv .venv-benchmarks .venv-torchmeta build demo *.egg-info
