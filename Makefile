# Every target makes its own .venv when it is missing or older than pyproject.toml.
# make demo | test | test-slow | lint | bench | clean        (PYTHON=python3.12 make ... chooses the interpreter)

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := test
.PHONY: demo test test-slow lint bench clean venv

# The first interpreter that runs and is of a supported version; a version manager's shim may be there and not run.
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(shell for name in python3 python3.11 python3.12; do $$name -c '$(FITS)' 2>/dev/null && echo $$name && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.made-from-pyproject

# Busy-waiting threads slow a shared machine down; a hub that is not there would be asked again for minutes.
export OMP_WAIT_POLICY := passive
export HF_HUB_OFFLINE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# The programs of a virtual environment name its path, so one that was made elsewhere, or whose interpreter is gone, is
# made anew.
ALIVE := grep -qs -- ' $(CURDIR)/$(VENV)$$' $(VENV)/pyvenv.cfg && $(BIN)/python -c 'import pip' 2>/dev/null
$(shell { $(ALIVE); } || rm -f $(STAMP))

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" && $(PYTHON) -c '$(FITS)' || { echo "Python 3.11 or 3.12 is needed: make PYTHON=..." >&2; exit 2; }
	{ $(ALIVE); } || $(PYTHON) -m venv --clear "$(CURDIR)/$(VENV)"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

# Tests use one thread each. A file's tests stay together, since they share what is costly to make.
JOBS ?= 2
PARALLEL := --numprocesses=$(JOBS) --dist=loadfile

venv: $(STAMP)

demo: $(STAMP)
	$(BIN)/python -m launch run examples/demo_album --config mini --out out --name demo

test: $(STAMP)
	$(BIN)/python -m pytest $(PARALLEL) --cov --cov-report=
	$(BIN)/python -m coverage report --include='modules/*' --fail-under=85
	$(BIN)/python -m coverage report --include='trainer/*' --fail-under=85

# Exit code 5 says that nothing was chosen, which is no failure here.
test-slow: $(STAMP)
	$(BIN)/python -m pytest $(PARALLEL) -m 'slow or slurm or browser' --timeout=1800 || test $$? -eq 5

lint: $(STAMP)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python -m launch bench

clean:
	rm -rf .coverage .coverage.* coverage.xml build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
