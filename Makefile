# Two commands matter: `make train` and `make test`. The README shows the plain commands they call.
#   make train ARGS="trainer.epochs=3"          make train CONFIG=configs/line.yaml
#   make test  ARGS="tests/test_layers.py -k cycle"

CONFIG ?= configs/digits.yaml
VENV := .venv
VENV_PYTHON := $(VENV)/bin/python
LONG := slow or full or browser or gpu
# The first Python that is new enough. Another one: make train PYTHON=/path/to/python3.12
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

.PHONY: train test test-full test-gpu bench docs audit fuzz lint format setup setup-dev clean

train: setup
	$(VENV_PYTHON) train.py -c $(CONFIG) $(ARGS)

test: setup-dev
	$(VENV_PYTHON) -m pytest -n auto --dist worksteal -m "not ($(LONG))" $(ARGS)

test-full: setup-dev
	$(VENV_PYTHON) -m pytest -n auto --dist worksteal $(ARGS)

test-gpu: setup-dev
	$(VENV_PYTHON) -m pytest -m gpu $(ARGS)

bench: setup-dev
	$(VENV_PYTHON) -m benchmarks $(ARGS)

docs: setup-dev
	$(VENV_PYTHON) -m sphinx -q -W --keep-going -b html docs build/docs $(ARGS)
	@echo "build/docs/index.html"

chaos: setup-dev
	$(VENV_PYTHON) -m tests.chaos $(ARGS)

audit: setup-dev
	@$(VENV_PYTHON) -m pip install -q -c constraints.txt -e ".[audit]"
	$(VENV_PYTHON) .ci/audit.py

fuzz: setup-dev
	$(VENV_PYTHON) -m tests.fuzz $(ARGS)

lint: setup-dev
	@status=0; for linter in "ruff check ." "ruff format --check ." "mypy" "mypy --platform win32"; do \
		echo "$(VENV_PYTHON) -m $$linter"; $(VENV_PYTHON) -m $$linter || status=1; done; exit $$status

format: setup-dev
	$(VENV_PYTHON) -m ruff check --fix .
	$(VENV_PYTHON) -m ruff format .

setup: $(VENV)/installed
setup-dev: $(VENV)/installed-dev

# Stamps: set up once, and again when pyproject.toml or constraints.txt change.
$(VENV)/installed: pyproject.toml constraints.txt
	@$(MAKE) --no-print-directory venv
	$(VENV_PYTHON) -m pip install -c constraints.txt -e .
	@touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt
	@$(MAKE) --no-print-directory venv
	$(VENV_PYTHON) -m pip install -c constraints.txt -e ".[dev]"
	@touch $(VENV)/installed $@

.PHONY: venv
venv:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: make train PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(VENV_PYTHON) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis keel.egg-info
