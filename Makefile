# make demo | test | check | bench | faults | soak | mutants; each sets up what it needs below .venv and .cache
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
HISTORIES := tests/jobs tests/repository/test_retention.py tests/storage tests/daemon
READY := $(VENV)/.ready

.PHONY: demo test check faults soak mutants bench pins clean

$(READY): requirements/dev.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "aquad needs Python 3.11 or newer: make PYTHON=python3.x")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

demo: $(READY)
	$(BIN)/python -m aquad.demo $(if $(KEEP),--keep playground)

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/test_house.py

# Every point instead of a sample, and 10^6 executions of each fuzz target: an hour and a half. The table ends it.
faults: $(READY)
	rm -f .cache/faults.jsonl
	AQUAD_FAULTS=all AQUAD_FAULTS_COUNTS=$(CURDIR)/.cache/faults.jsonl $(BIN)/python -m pytest -n 2 --timeout 3600 tests/faults $(HISTORIES)
	$(BIN)/python -m tests.faults.harness.counts .cache/faults.jsonl
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/faults.txt
	$(BIN)/python -m tests.fuzz all --runs 1000000

# A year of the daemon with kills, full disks, rot and holds, under a clock that is set from slot to slot: half an hour.
soak: $(READY)
	$(BIN)/python -m tests.soak

# Each defect of tests/mutants is put into a copy of the tree, and has to be caught: ten minutes.
mutants: $(READY)
	$(BIN)/python -m tests.mutants

bench: $(READY)
	$(BIN)/python -m bench

# After a change of pyproject.toml or requirements/*.in: pin anew. Python 3.11 is the oldest we support.
pins: $(READY)
	$(BIN)/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-header -o requirements/dev.txt requirements/dev.in
	$(BIN)/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-header -o requirements/run.txt pyproject.toml
	$(BIN)/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-header -o requirements/faults.txt requirements/faults.in

clean:
	rm -rf $(VENV) .cache
