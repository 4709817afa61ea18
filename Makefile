.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name))))
TORCH ?= torch==2.13.0
BIN := .venv/bin
# uv does not read pip's settings: where pip is told of a folder of wheels, uv is told as well.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
# Compiled once here: where PYTHONDONTWRITEBYTECODE is set, each process would compile what it imports, for seconds.
UV := $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python

.PHONY: help
help:  ## List the targets.
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

include kubernetes.mk

.PHONY: demo
demo: $(BIN)/ready  ## Run all seven pipelines on real data through a local S3 server and print a table of results.
	@$(BIN)/daskyard demo

.PHONY: test
test: $(BIN)/ready  ## Run the unit and integration tests, a file at a time on each of two processes.
	@$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 1

.PHONY: acceptance
acceptance: $(BIN)/ready  ## Run the demo and hold its results against oracles and the documented bars.
	@$(BIN)/pytest tests/acceptance

.PHONY: bench
bench: $(BIN)/ready  ## Compare with peers, each in an environment of its own, and write docs/benchmarks.md (CASES="…" for some).
	@$(BIN)/python -m benchmarks $(CASES)

.PHONY: check
check: $(BIN)/ready  ## Check format, lint, types, import layers and generated files.
	@$(BIN)/ruff format --check --quiet . || { echo "run: make format"; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/daskyard schema | diff -u docs/job.schema.json - || { echo "run: make schema"; exit 1; }
	@made=$$(mktemp -d) && trap 'rm -r "$$made"' EXIT && $(BIN)/python -m controller.definitions "$$made" && diff -ru operator_config/crds "$$made" || { echo "run: make schema"; exit 1; }

.PHONY: format
format: $(BIN)/ready  ## Format the code and mend what the linter can mend.
	@$(BIN)/ruff format --quiet . && $(BIN)/ruff check --fix --quiet .

.PHONY: schema
schema: $(BIN)/ready  ## Write docs/job.schema.json, of a job file, and operator_config/crds, of MLJob and MLRuntime.
	@$(BIN)/daskyard schema > docs/job.schema.json
	@$(BIN)/python -m controller.definitions

.PHONY: lock
lock: $(BIN)/ready  ## Resolve the dependencies anew into requirements.lock.
	@$(BIN)/uv pip compile pyproject.toml --extra local --group dev --group operator --group charts --group torch-needs --upgrade --quiet --no-header \
	  --override <(echo "torch ; sys_platform == 'never'") --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-package torch \
	  --output-file requirements.lock

.PHONY: clean
clean:  ## Remove the environment and all caches.
	@rm -rf .venv .venv-checkov benchmarks/.environments .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

# The lock holds everything but torch: which build of it is right, CPU or CUDA, is the machine's affair.
$(BIN)/ready: requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "no Python found: install Python 3.11 or later"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is too old: install Python 3.11 or later"; exit 1; }
	@echo "setting up .venv (a few minutes the first time)"
	@"$(PYTHON)" -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(UV) --require-hashes -r requirements.lock
	@$(UV) "$(TORCH)"
	@$(UV) --no-deps --editable .
	@touch $@
