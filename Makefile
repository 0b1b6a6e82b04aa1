# `make demo` trains and prints a table, `make test` checks everything, `make docs` writes the site to build/site.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint docs bench clean

demo: .venv/installed
	$(BIN)/milkweed demo

test: lint
	$(BIN)/pytest -n 2

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
