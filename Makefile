# `make serve` and `make test` need nothing but python3: the first run makes .venv, later ones use it.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: serve test fuzz lint format bench targets setup

serve: $(READY) ## the service on this machine; PORT=9000 chooses another port
	@PORT=$(PORT) exec $(BIN)/python -m deployments.serve serve_config.yaml

test: $(READY)
	$(BIN)/python -m pytest

fuzz: $(READY) ## prompts made at random of the grammar's own pieces, for some minutes
	$(BIN)/python -m pytest tests/engine/prompts/fuzz_plan.py

lint: $(READY)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

bench: $(READY) ## this service, diffusers behind a lock, LitServe and Ray Serve's example in one run, 20 minutes
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	$(BIN)/python -m benchmarks.serving

targets: $(READY) ## what this service is to reach on a CPU against others, and what it reaches, an hour
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	$(BIN)/python -m benchmarks.targets

setup: $(READY)

$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@
