# The verbs, the same for people and for CI. On a fresh clone they need Python 3.11+, make, Java 17+ and Maven.

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
LOCKED := $(VENV)/.locked
READY := $(VENV)/.ready
SYSTEM := $(VENV)/.system
HAS_POSTGRES := (command -v initdb || ls /usr/lib/postgresql/*/bin/initdb) >/dev/null 2>&1
COMPILE := $(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock"

# The pyright wrapper would ask the package index at every run whether there is a newer one.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench lock clean

help: ## List the verbs
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY) ## Kill a node in front of your eyes and prove that nothing was lost; ARGS="--help"
	$(BIN)/python -m examples.flights $(ARGS)

test: $(READY) $(SYSTEM) ## Run the tests; ARGS="-k snapshot" for some of them
	$(BIN)/pytest $(ARGS)

lint: $(READY) ## Check style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(READY) ## Measure; ARGS="--help" for what
	$(BIN)/python -m bench $(ARGS)

lock: $(LOCKED) ## Pin the dependencies of pyproject.toml; ARGS=--upgrade takes newer ones
	@cp requirements.lock $(VENV)/new.lock
	$(COMPILE) --group dev $(ARGS) --output-file $(VENV)/new.lock
	@cmp -s $(VENV)/new.lock requirements.lock || cp $(VENV)/new.lock requirements.lock
	$(COMPILE) --group build --constraint requirements.lock --no-annotate --output-file requirements-runtime.lock

clean: ## Remove what the other verbs made, except event logs (.rekindle)
	rm -rf $(VENV) .bench .kafka .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Exactly what is locked, hence made anew; a stamp is the last thing written, so an interrupted run starts again.
$(LOCKED): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Rekindle needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	@touch $@

$(READY): $(LOCKED) pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@touch $@

# What the tests run that no Python package brings: installed where that may be, else its tests are skipped, loudly. They use
# ports of their own, so a service that comes with a package is not in the way.
$(SYSTEM): $(LOCKED)
	@command -v redis-server >/dev/null && $(HAS_POSTGRES) || [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null \
		|| (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq redis-server postgresql) || true
	@if command -v redis-server >/dev/null && $(HAS_POSTGRES); then touch $@; \
	else echo "No redis-server or no PostgreSQL, so their tests will be skipped. To have them run: sudo apt-get install redis-server postgresql"; fi
