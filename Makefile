# `make serve` and `make test` need nothing but python3: the first run makes .venv, later ones use it.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
XINFERENCE := .venv-xinference

.PHONY: serve test fuzz fuzz-api lint format bench targets xinference setup

serve: $(READY) ## the service on this machine; PORT=9000 chooses another port
	@PORT=$(PORT) exec $(BIN)/python -m deployments.serve serve_config.yaml

test: $(READY)
	$(BIN)/python -m pytest

fuzz: $(READY) ## prompts made at random of the grammar's own pieces, for some minutes
	$(BIN)/python -m pytest tests/engine/prompts/fuzz_plan.py

fuzz-api: $(READY) ## some thousand requests made from the OpenAPI document, for some minutes
	FUZZ_EXAMPLES=200 $(BIN)/python -m pytest tests/ingress/test_fuzz_api.py

lint: $(READY)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

bench: $(READY) ## this service, diffusers behind a lock, LitServe, Ray Serve's example and Xinference in one run
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	@$(MAKE) --no-print-directory xinference || echo "Xinference cannot be installed here: the others run without it."
	$(BIN)/python -m benchmarks.serving

targets: $(READY) ## what this service is to reach on a CPU against others, and what it reaches, an hour
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	$(BIN)/python -m benchmarks.targets

xinference: $(XINFERENCE)/.ready ## what the benchmark needs of Xinference, once

setup: $(READY)

$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

$(XINFERENCE)/.ready: benchmarks/baselines/xinference.txt
	@echo "Xinference gets an environment of its own: 2 GB in $(XINFERENCE), some minutes, once."
	$(PYTHON) -m venv $(XINFERENCE)
	$(XINFERENCE)/bin/python -m pip install --quiet torch==2.13.0
	$(XINFERENCE)/bin/python -m pip install --quiet --no-deps --requirement $<
	touch $@
