# Two commands do everything on a fresh machine: `make demo` and `make test`.
# Both set up .venv with the versions pinned in constraints.txt.

PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
BIN := .venv/bin
# One process a core, each with one thread: networks as small as the tests' gain nothing from a second one, and more
# processes take longer. What Python compiles is kept, whatever the environment says: every process would compile all
# tests anew.
TESTS := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

# Warnings of pip about the machine's own configuration are no news to a newcomer; errors are still printed.
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-quick lint types docs check studio-picture clean

demo: .venv/.demo
	@$(BIN)/ddt-accel demo

test: .venv/.dev
	@$(TESTS)

# Without those that train, fit, build engines or start many processes: for the loop while editing.
test-quick: .venv/.dev
	@$(TESTS) -m 'not slow'

lint: .venv/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: .venv/.dev
	@$(BIN)/mypy

docs: .venv/.docs
	@$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going docs site
	@echo "The documentation: site/index.html"

# The page in Chromium, for README and documentation; times on it are this machine's.
studio-picture: .venv/.dev
	@$(BIN)/python benchmarks/studio_picture.py

check: test lint types docs

.venv/.python:
	@test -n "$(PYTHON)" || { echo "ddt-accel needs Python 3.11 or newer; none was found on the PATH."; exit 1; }
	@echo "Making .venv with $$($(PYTHON) --version) ..."
	@$(PYTHON) -m venv .venv || { echo "Python's venv module is missing; on Debian: apt install python3-venv"; exit 1; }
	@$(INSTALL) setuptools
	@touch $@

.venv/.demo: .venv/.python pyproject.toml constraints.txt
	@echo "Installing ddt-accel, PyTorch and ONNX Runtime into .venv (once; some minutes) ..."
	@$(INSTALL) --no-build-isolation -e '.[cpu]'
	@touch $@

.venv/.dev: .venv/.python pyproject.toml constraints.txt
	@echo "Installing ddt-accel with what its tests need, TensorRT for RTX among it, into .venv (once; some minutes) ..."
	@$(INSTALL) --no-build-isolation -e '.[dev]'
	@touch $@ .venv/.demo

.venv/.docs: .venv/.python pyproject.toml constraints.txt
	@echo "Installing ddt-accel with what builds its documentation into .venv (once; some minutes) ..."
	@$(INSTALL) --no-build-isolation -e '.[docs]'
	@touch $@

clean:
	rm -rf .venv site build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
