# make demo   the whole path on handwritten digits, then the search page (SERVE=0: stop after the report)
# make test   checks and the whole test suite
# make check  lint, format, types, import direction
# make venv   the virtual environment that all of these use and make themselves
PYTHON ?= python3
VENV ?= .venv
OUTPUT ?= demo
PORT ?= 8000
SERVE ?= 1
BIN := $(VENV)/bin
READY := $(VENV)/.installed

.PHONY: demo test check venv
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

$(READY): pyproject.toml requirements.lock
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
