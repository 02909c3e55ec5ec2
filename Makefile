# Every target makes its own .venv when it is missing or older than pyproject.toml.
# make demo | test | test-slow | lint | bench | clean        (PYTHON=python3.12 make ... chooses the interpreter)

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := test
.PHONY: demo test test-slow lint bench clean venv

PYTHON ?= $(firstword $(foreach name,python3.12 python3.11 python3,$(shell command -v $(name) 2>/dev/null)))
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.made-from-pyproject

# Busy-waiting threads slow a shared machine down; a hub that is not there would be asked again for minutes.
export OMP_WAIT_POLICY := passive
export HF_HUB_OFFLINE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# A virtual environment that came with a moved checkout has a dead interpreter: make it anew.
ifneq ($(wildcard $(STAMP)),)
ifneq ($(shell $(BIN)/python -c 'print(1)' 2>/dev/null),1)
$(shell rm -f $(STAMP))
endif
endif

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed." >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' \
	  || { echo "Python 3.11 or 3.12 is needed, found $$($(PYTHON) --version): make PYTHON=python3.12" >&2; exit 2; }
	$(BIN)/python -c 'import pip' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

venv: $(STAMP)

demo: $(STAMP)
	$(BIN)/python -m launch run examples/demo_album --config mini --out out --name demo

test: $(STAMP)
	$(BIN)/python -m pytest --cov --cov-report=
	$(BIN)/python -m coverage report --include='modules/*' --fail-under=85
	$(BIN)/python -m coverage report --include='trainer/*' --fail-under=85

# Exit code 5 says that nothing was chosen, which is no failure here.
test-slow: $(STAMP)
	$(BIN)/python -m pytest -m 'slow or slurm or browser' --timeout=1800 || test $$? -eq 5

lint: $(STAMP)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python -m pytest tests/benchmarks -m '' --capture=no || test $$? -eq 5

clean:
	rm -rf .coverage .coverage.* coverage.xml build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
