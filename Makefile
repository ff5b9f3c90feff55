# Development tasks of tfqil. GNU make; the only network that is used is the Python package index.
#
#   make setup                     .venv with the pinned packages of requirements.lock and tfqil in editable mode
#   make setup PYTHON=python3.11   the same with an interpreter of your choice, 3.10 to 3.12
#   make demo | test | check | bench
#   make test-recipes              the tests of whole commands: of examples, benchmarks and several processes
#   make matrix                    runs the support matrix and writes docs/support.md; goes on where it stopped
#   make accuracy                  trains every method and its peers, hours, and writes docs/accuracy.md; goes on likewise
#   make notebook                  executes docs/tutorial.ipynb, some minutes, and writes it with its outputs
#   make clean                     removes everything that the targets above create

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := .venv
STAMP := $(VENV)/.stamp
BIN := $(VENV)/bin

# An interpreter on the PATH may be a launcher that fails when it is run, of another version than its name says, or without
# the module that makes virtual environments: each candidate has to prove itself.
PYTHON ?=
CANDIDATES := $(or $(PYTHON),python3.12 python3.11 python3.10 python3)
PROBE := import sys, venv, ensurepip; (3, 10) <= sys.version_info[:2] <= (3, 12) and print(sys.executable)
define FIND_PYTHON
python=
for candidate in $(CANDIDATES); do
  if python="$$("$$candidate" -c '$(PROBE)' 2>/dev/null)" && [[ -n "$$python" ]]; then break; fi
done
if [[ -z "$$python" ]]; then
  echo "make: none of '$(CANDIDATES)' is a working Python 3.10, 3.11 or 3.12 with the venv module;" \
    "install one or name it, as in: make setup PYTHON=/path/to/python3.12" >&2
  exit 1
fi
endef

# A stray Keras 3 setting in the caller's environment must not change what is tested.
RUN := env TF_CPP_MIN_LOG_LEVEL=3 TF_USE_LEGACY_KERAS=1

.PHONY: help python setup demo test test-recipes matrix accuracy notebook check bench clean

help:
	@sed -n 's/^#   make/  make/p' Makefile

# Prints the interpreter that .venv is made with.
python:
	@$(FIND_PYTHON)
	echo "$$python"

setup: $(STAMP)

$(STAMP): requirements.lock setup.py
	@$(FIND_PYTHON)
	echo "Creating $(VENV) with $$python ($$("$$python" --version))"
	"$$python" -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo: $(STAMP)
	$(RUN) $(BIN)/python examples/quickstart.py

PYTEST := $(RUN) $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

# The tests marked `matrix` are the cells of `make matrix`, hours of CPU; a few cheap cells are not marked and run here.
test: $(STAMP)
	$(PYTEST) -m "not matrix and not recipe"

# Whole commands, which are killed and started again, and trainings of several processes: as long as all other tests.
test-recipes: $(STAMP)
	$(PYTEST) -m recipe

# Not part of `test`: 21 architectures, 4 configs and 3 storages are 252 cells and take hours of CPU.
matrix: $(STAMP)
	$(RUN) $(BIN)/python benchmarks/support.py --markdown=docs/support.md

# Not part of `test`: an hour of two cores per seed. The records are kept in docs/accuracy, so that a seed can be added.
accuracy: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/requirements-peers.txt
	$(RUN) $(BIN)/python benchmarks/accuracy.py --records=docs/accuracy --markdown=docs/accuracy.md \
	  --plot=docs/accuracy.png

# Its text is edited in the file itself; what it shows is always that of the code beside it.
notebook: $(STAMP)
	$(RUN) $(BIN)/python docs/execute_notebook.py docs/tutorial.ipynb

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(RUN) $(BIN)/python benchmarks/latency.py

clean:
	rm -rf $(VENV) *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -not -path './.git/*' -exec rm -rf {} +
