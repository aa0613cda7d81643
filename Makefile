# make setup | demo | test | test-long | bench | chaos | lint
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Test processes at once.
TESTERS ?= 2
READY := $(VENV)/.ready
TORCH_INDEX := https://download.pytorch.org/whl/cpu
# Fewer threads than cores would fight: every process of a run bounds its own.
export OMP_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0

.PHONY: setup judge demo test test-long bench chaos lint format clean

setup: $(READY)

# Anew only when a requirement changed. --no-deps: requirements/cpu.txt is the whole, exact set.
$(READY): requirements/cpu.txt requirements/torch.txt requirements/dev.txt requirements/datasets.txt requirements/planner.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "Yendor's CPU set-up needs Python 3.11 (found: $(PYTHON)); give PYTHON=/path/to/python3.11"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet setuptools==80.9.0 wheel==0.45.1
	$(PIP) install --quiet --no-deps -r requirements/torch.txt || \
	  $(PIP) install --quiet --no-deps --index-url $(TORCH_INDEX) -r requirements/torch.txt
	$(PIP) install --quiet --no-deps -r requirements/cpu.txt -r requirements/dev.txt
	$(PIP) install --quiet --no-deps --upgrade --target $(VENV)/datasets -r requirements/datasets.txt
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) install --quiet --no-deps --no-build-isolation -r requirements/planner.txt || \
	  echo "ALFWorld will not play: its planner could not be compiled (is g++ there?). All else works; to try again: rm $(READY); make setup"
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
	touch $(READY)

# The embedded judge: trained once (about two minutes), then taken from .cache/judge.
judge: setup
	$(BIN)/yendor judge build

demo: judge
	$(BIN)/yendor train demo --overwrite

# A file's tests stay in one process: they share what is costly to make. tests/conftest.py says which begin first.
PYTEST := $(BIN)/python -m pytest -n $(TESTERS) --dist loadfile --no-loadscope-reorder

# The fast tests first: they find most of what is wrong within minutes.
test: judge
	$(PYTEST) -m "not slow and not long"
	$(PYTEST) -m slow --durations 20

# What takes minutes each: runs whose parts are killed, stopped and cut off, clusters of several nodes, jobs.
test-long: judge
	$(PYTEST) -m long --durations 40

bench: judge
	$(BIN)/python -m benchmarks

# Hundreds of faults under two trainings. As root they also meet the network and the disk.
chaos: judge
	$(BIN)/python -m benchmarks chaos

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache .hypothesis build *.egg-info
