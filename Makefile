# Two commands do everything on a fresh machine: `make demo` and `make test`. Both make .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SEED ?= 0

.PHONY: demo test lint thorough clean

demo: $(VENV)/installed
	$(BIN)/python -m learners.rapo --env MathTool-v0 --seed $(SEED)

test: $(VENV)/installed-testing
	$(BIN)/pytest $(PYTEST_ARGS)

lint: $(VENV)/installed-testing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What takes too long for every change: learning over seeds, hundreds of kills.
thorough: $(VENV)/installed-testing
	$(BIN)/pytest --thorough $(PYTEST_ARGS)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/installed-testing: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --editable ".[testing,reasoning-gym]"
	touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
