# make search   set-up, then the quickstart study
# make test     set-up, then what a developer runs all the time
# make test-all what takes longer, on top of `make test`: a browser, more kills, a cluster
# make soak     long fault runs: make soak KILLS=20 SEED=1
# make lint     formatting, lint, types
PYTHON ?= python3
BIN := .venv/bin
KILLS ?= 20
SEED ?= 1

.PHONY: search test test-all soak lint clean
# A .venv that could not be made is made anew the next time.
.DELETE_ON_ERROR:

search: .venv/installed
	$(BIN)/planter search studies/quickstart.yaml

test: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not long and not browser and not cluster" --ignore tests/faults/test_kills.py
	$(BIN)/python -m pytest -q -m "not long and not browser" tests/faults/test_kills.py

test-all: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "long or browser or cluster"

soak: .venv/installed-dev
	$(BIN)/python tests/faults/soak.py --kills $(KILLS) --seed $(SEED)

lint: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("planter needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; try make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv

# The stamps are older than pyproject.toml exactly when the dependencies may have changed.
.venv/installed: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[dev,png]'
	touch $@

clean:
	rm -rf .venv
