# `make demo` trains and prints a table, `make test` checks everything in minutes (`make test-all` with every case),
# `make docs` writes the site to build/site.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all lint pytest docs bench clean

demo: .venv/installed
	$(BIN)/milkweed demo

# Beside each other, so that both cores have work until the end.
test: .venv/installed
	$(MAKE) --no-print-directory --jobs=2 lint pytest

test-all: lint
	$(BIN)/pytest --all -n 2 --dist worksteal

pytest: .venv/installed
	$(BIN)/pytest -n 2 --dist worksteal

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The repository is the source, so that every page lies where it is read; a warning is an error.
docs: .venv/installed
	$(BIN)/sphinx-build -q -W --keep-going -E -c docs -d build/doctrees . build/site

bench: .venv/installed
	$(BIN)/python -m benchmarks

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
