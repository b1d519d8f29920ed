# Two commands do everything on a fresh machine: `make demo` and `make test`.
# Both set up .venv with the versions pinned in constraints.txt.

PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
BIN := .venv/bin

.PHONY: demo test lint types check clean

demo: .venv/.demo
	@$(BIN)/ddt-accel demo

test: .venv/.dev
	@$(BIN)/python -m pytest

lint: .venv/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: .venv/.dev
	@$(BIN)/mypy

check: test lint types

.venv/.python:
	@test -n "$(PYTHON)" || { echo "ddt-accel needs Python 3.11 or newer; none was found on the PATH."; exit 1; }
	@$(PYTHON) -m venv .venv || { echo "Python's venv module is missing; on Debian: apt install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools
	@touch $@

.venv/.demo: .venv/.python pyproject.toml constraints.txt
	@echo "Installing ddt-accel into .venv (a few minutes the first time) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -c constraints.txt -e '.[cpu]'
	@touch $@

.venv/.dev: .venv/.python pyproject.toml constraints.txt
	@echo "Installing ddt-accel and its development tools into .venv (a few minutes the first time) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -c constraints.txt -e '.[dev]'
	@touch $@ .venv/.demo

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
