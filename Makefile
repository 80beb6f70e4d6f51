# make demo   the whole path on handwritten digits, then the search page (SERVE=0: stop after the report)
# make test   checks and the whole test suite
# make check  lint, format, types, import direction
# make venv   the virtual environment that all of these use and make themselves
# make native compiles the C code again, in place and nothing else; an edited source is compiled by all of the above too
# make asan   tests the C code, compiled to stop at any access out of bounds and any undefined behavior
PYTHON ?= python3
VENV ?= .venv
OUTPUT ?= demo
PORT ?= 8000
SERVE ?= 1
BIN := $(VENV)/bin
READY := $(VENV)/.installed
NATIVE := $(wildcard cibhash/native/*.[ch])
SANITIZED := build/sanitized.so

.PHONY: demo test check venv native asan
.DEFAULT_GOAL := venv

demo: $(READY)
	@$(BIN)/cibhash demo --output $(OUTPUT) --port $(PORT) $(if $(filter 0 no false,$(SERVE)),--no-serve,--serve)

test: check
	@$(BIN)/python -m pytest

check: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy --strict
	@$(BIN)/lint-imports

venv: $(READY)

native: | $(BIN)/python
	@$(BIN)/python -W ignore -c 'import setuptools; setuptools.setup()' --quiet build_ext --inplace

asan: $(READY) $(SANITIZED)
	@LD_PRELOAD=$$($(CC) -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0 CIBHASH_NATIVE=$(abspath $(SANITIZED)) \
		$(BIN)/python -m pytest --noconftest -p no:cacheprovider tests/cibhash/native

$(SANITIZED): $(NATIVE)
	@mkdir -p $(@D)
	@$(CC) -std=c11 -O1 -g -Wall -Wextra -Wno-unused-parameter -Wconversion -Werror \
		-fsanitize=address,undefined -fno-sanitize-recover=all -fPIC -shared $(filter %.c,$^) -o $@

$(BIN)/python:
	@$(MAKE) venv

$(READY): pyproject.toml requirements.lock $(NATIVE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "error: $(PYTHON) is missing or older than 3.11: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "error: $(PYTHON) cannot make $(VENV) (on Debian: apt-get install python3-venv)" >&2; exit 1; }
	@echo "installing requirements.lock into $(VENV), several GB the first time" >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock || \
		{ echo "error: pip could not install requirements.lock into $(VENV)" >&2; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable . || \
		{ echo "error: pip could not install the package into $(VENV)" >&2; exit 1; }
	@touch $@
