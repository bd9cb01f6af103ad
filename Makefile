# make tour: the main job on the embedded network. make explore: its pages, served on this machine.
# make check: lint, types, tests.
# make test: the tests. make test-all: those as well that take long and try nothing of another kind.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --compile-bytecode
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --no-header --generate-hashes pyproject.toml

# The sum of the wheels in requirements.lock, November 2026.
ifeq ($(shell uname -s),Linux)
DOWNLOAD := a download of 3.4 GB (torch and the CUDA libraries that it asks for: 2.9 GB)
else
DOWNLOAD := a download of 0.5 GB (torch: 0.1 GB)
endif

.PHONY: setup tour explore test test-all cluster-test check lint types declarations lock gallery gallery-pretrained docs bench-setup clean

setup: $(VENV)/.setup
tour: $(VENV)/.setup
	@$(BIN)/sightline tour --out out/tour

# The embedded network on tiles of the sample photographs. Ctrl-C stops it.
explore: $(VENV)/.setup
	@$(BIN)/sightline explore

# A worker that has no tests left takes some of another's. Compiled tests are kept: to rewrite their
# assertions takes each worker ten seconds.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --dist worksteal

test: $(VENV)/.setup-test
	@$(PYTEST) -m "not slow"

test-all: $(VENV)/.setup-test
	@$(PYTEST)

check: lint types test

# A scan on two Ray nodes on this machine, one worker killed; half a minute and more.
cluster-test: $(VENV)/.setup-test
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -s tests/cluster/cluster_test.py

lint: $(VENV)/.setup-test
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/.setup-test
	@$(BIN)/pyright

# What `--help` reads in place of the methods: to be made again when a declaration changes.
declarations: $(VENV)/.setup
	@$(BIN)/python -m sightline.app.cli.declarations

# Makes the pictures of README and manual again. Those of pretrained networks need their weights:
# VGG-16's are downloaded (0.5 GB) unless SIGHTLINE_WEIGHTS names a folder that holds them.
RUN_SCRIPTS := for script in $$scripts; do echo $$script; $(BIN)/python $$script || exit 1; done
gallery: $(VENV)/.setup
	@scripts="$(filter-out gallery/pretrained_%,$(sort $(wildcard gallery/*.py)))"; $(RUN_SCRIPTS)
gallery-pretrained: $(VENV)/.setup-test
	@scripts="$(sort $(wildcard gallery/pretrained_*.py))"; $(RUN_SCRIPTS)

# The manual, in docs/_build/html. An example is run again when its script has changed; the first
# build runs all of them, which takes minutes.
docs: $(VENV)/.setup-docs
	@$(BIN)/python -m sphinx -q -b html -W --keep-going -d docs/_build/doctrees docs docs/_build/html
	@echo "docs/_build/html/index.html"

# Pins every dependency, without any address.
lock: $(VENV)/.uv
	@$(COMPILE) -o requirements.lock
	@$(COMPILE) --extra test --extra train --extra cluster --extra attacks --extra mcp --extra imagenet -c requirements.lock -o requirements-test.lock
	@$(COMPILE) --extra docs -c requirements-test.lock -o requirements-docs.lock
	@$(COMPILE) --all-extras -c requirements-test.lock -c requirements-docs.lock -o requirements-bench.lock

$(VENV)/.uv:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"Sightline needs Python 3.11 or newer; $(PYTHON) is {sys.version.split()[0]} (PYTHON=... names another)")'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	@touch $@

$(VENV)/.setup: $(VENV)/.uv requirements.lock pyproject.toml
	@echo "Installing $$(grep -c '==' requirements.lock) packages into $(VENV), $(DOWNLOAD); what uv has in its cache is not downloaded again."
	@$(INSTALL) --no-deps -r requirements.lock
	@$(INSTALL) --no-deps --editable .
	@touch $@

$(VENV)/.setup-test: $(VENV)/.setup requirements-test.lock
	@$(INSTALL) --no-deps -r requirements-test.lock
	@touch $@

$(VENV)/.setup-docs: $(VENV)/.setup requirements-docs.lock
	@$(INSTALL) --no-deps -r requirements-docs.lock
	@touch $@

# The peers that bench/ measures beside ours.
bench-setup: $(VENV)/.setup-test requirements-bench.lock
	@$(INSTALL) --no-deps -r requirements-bench.lock

clean:
	rm -rf $(VENV) out docs/_build docs/examples docs/methods docs/project
