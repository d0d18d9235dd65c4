# Every command a person or CI needs. `make help` lists them.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Which torch build to install: the default is the CPU build, so that nobody without a GPU downloads CUDA.
# For an NVIDIA GPU: make setup TORCH_INDEX=https://download.pytorch.org/whl/cu130
TORCH_INDEX ?= cpu
TORCH_VERSION := 2.13.0
STAMP := $(VENV)/.installed-$(shell { cat pyproject.toml scripts/setup.sh; echo $(TORCH_VERSION) $(TORCH_INDEX); } | sha256sum | cut -c1-12)

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this help
	@grep -hE '^[a-z_-]+:.*## ' $(MAKEFILE_LIST) | awk 'BEGIN{FS=":.*## "}{printf "  \033[36m%-10s\033[0m %s\n",$$1,$$2}'

$(STAMP):
	@scripts/setup.sh "$(PYTHON)" "$(VENV)" "$(TORCH_VERSION)" "$(TORCH_INDEX)"
	@rm -f $(VENV)/.installed-* && touch $@

.PHONY: setup
setup: $(STAMP) ## Make .venv with everything pinned (CPU torch unless TORCH_INDEX says otherwise)

.PHONY: demo
demo: setup ## Fetch the demo model, start two sites on this machine, ask one question, keep serving until Ctrl-C
	@exec $(BIN)/prfaas demo

.PHONY: test
test: setup ## Run the test suite (what CI runs)
	@$(BIN)/python -m pytest

.PHONY: fault
fault: setup ## Run only the tests that kill, cut and corrupt things
	@$(BIN)/python -m pytest -m fault

.PHONY: clients
clients: setup ## Run third-party clients and a browser, each in an environment of its own, against the demo model
	@$(BIN)/python tests/clients/run_all.py

.PHONY: fuzz
fuzz: setup ## Send 2,000 generated requests to every endpoint and hold the answers against the OpenAPI document
	@$(BIN)/python tests/clients/fuzz.py

.PHONY: gpu
gpu: setup ## Run only the tests that need an accelerator
	@$(BIN)/python -m pytest -m gpu tests/gpu

.PHONY: bench
bench: setup ## Run every benchmark with its bars
	@$(BIN)/python -m benchmarks

.PHONY: fmt
fmt: setup ## Format the code
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

.PHONY: lint
lint: setup ## Lint and check the format
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

.PHONY: types
types: setup ## Type-check
	@$(BIN)/mypy

.PHONY: arch
arch: setup ## Check who imports whom
	@$(BIN)/lint-imports

.PHONY: proto
proto: setup ## Generate the gRPC stubs from proto/
	@scripts/proto.sh $(BIN)/python

.PHONY: proto-check
proto-check: setup ## Check that the generated stubs are fresh
	@scripts/proto.sh $(BIN)/python --check

.PHONY: check
check: lint types arch proto-check ## The gate: lint, types, architecture, generated code

.PHONY: clean
clean: ## Remove the environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
