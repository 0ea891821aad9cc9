# make demo | test | check | bench | faults | soak | mutants | wheels | image; each sets up what it needs below .venv and .cache
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
HISTORIES := tests/jobs tests/repository/test_retention.py tests/storage tests/daemon
READY := $(VENV)/.ready
POSTGRES_MAJORS ?= 16
IMAGE_PYTHON ?= 3.12
IMAGE_BASE ?= python:3.12-slim-bookworm
IMAGE ?= aquad:latest

.PHONY: demo test check faults soak mutants bench wheels image pins clean

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

# What the image is made of, for its Python, not ours: downloaded here, checked by hash here and again in the build.
wheels: $(READY)
	mkdir -p build/wheels && echo '*' >build/.gitignore
	$(BIN)/pip download --quiet --disable-pip-version-check --require-hashes --no-deps --only-binary=:all: --python-version $(IMAGE_PYTHON) -d build/wheels -r requirements/image.txt
	for major in $(POSTGRES_MAJORS); do $(BIN)/pip download --quiet --disable-pip-version-check --require-hashes --no-deps --only-binary=:all: --python-version 3.12 -d build/wheels -r requirements/servers/postgres-$$major.txt || exit; done

# By whatever Docker the environment names; a base with another Python: make image IMAGE_BASE=... IMAGE_PYTHON=3.13
image: wheels
	docker build --build-arg BASE=$(IMAGE_BASE) --build-arg POSTGRES_MAJORS="$(POSTGRES_MAJORS)" -t $(IMAGE) .

# After a change of pyproject.toml or requirements/*.in: pin anew. Python 3.11 is the oldest we support.
pins: $(READY)
	$(BIN)/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-header -o requirements/dev.txt requirements/dev.in
	$(BIN)/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-header -o requirements/run.txt pyproject.toml
	$(BIN)/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-header --extra sms -c requirements/run.txt -o requirements/image.txt pyproject.toml
	$(BIN)/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-header -o requirements/faults.txt requirements/faults.in

clean:
	rm -rf $(VENV) .cache build
