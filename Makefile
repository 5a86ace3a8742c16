# Every target stands on `setup`, which builds .venv once and is instant until pyproject.toml changes.
# Name another Python with PYTHON=..., another torch by installing it into .venv before `make setup`.

PYTHON ?= python3
TORCH ?= torch==2.13.0

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
STAMP := $(VENV)/.installed

REPORT_ARGS ?=
TEST_WORKERS ?= 2
TEST_ARGS ?=
LAB_ARGS ?=
BROWSER ?= all
NOTEBOOKS_OUT ?= reports/notebooks
# Facts of these repeat exactly: nbval compares every output. Of the others only outputs that say so, and that they run.
EXACT_NOTEBOOKS := 00_start_here 01_specmoe_from_scratch 02_why_offloading_hurts 03_experts_in_slow_memory 04_hot_experts 05_self_draft 06_batched_verification 07_sampling_without_bias 10_real_machines 13_your_own
NBVAL := -q -p no:cacheprovider --nbval-cell-timeout=900
BENCH_ARGS ?=
PROCESSORS_ARGS ?=
MUTATE_ARGS ?=
# Waiting OpenMP threads spin this long, then leave the core to the readers (specmoe/options.py).
SPIN := GOMP_SPINCOUNT=30000

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help setup report test test-matrix test-oldest test-processors test-long mutate browser-test lab slides usb notebook-times notebooks bench bench-quick bench-real wheel-check docs coverage sizes lint clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1 - /p' Makefile

setup: $(STAMP) ## only the environment, in .venv

CHECK_PYTHON = import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))

$(STAMP): pyproject.toml
	@if ! $(PIP) --version >/dev/null 2>&1 || ! $(BIN)/python -c '$(CHECK_PYTHON)' >/dev/null 2>&1; then \
	  if ! $(PYTHON) -c '$(CHECK_PYTHON)' >/dev/null 2>&1; then \
	    echo "specmoe needs Python 3.10 or newer with venv and ensurepip (Debian and Ubuntu: install python3-venv)," \
	      "and '$(PYTHON)' is not one: name one with 'make setup PYTHON=python3.12'." >&2; exit 1; \
	  fi; \
	  echo "Making $(VENV) with $$($(PYTHON) --version)"; \
	  $(PYTHON) -m venv $(VENV); \
	fi
	@if ! $(BIN)/python -c 'import torch' >/dev/null 2>&1; then \
	  echo "Installing $(TORCH) (the largest download; some minutes)"; \
	  $(PIP) install --quiet --disable-pip-version-check '$(TORCH)'; \
	fi
	@echo "Installing specmoe with its notebooks and tests"
	@$(PIP) install --quiet --disable-pip-version-check -e '.[notebooks,dev]'
	@touch $@

report: setup ## run the main report and print the path of its HTML (REPORT_ARGS="--against reports/EARLIER": beside an earlier one)
	@$(BIN)/specmoe report run report --out reports/$$(date +%Y-%m-%d_%H%M%S) $(REPORT_ARGS)

# One thread per worker: two workers with two threads each would only take turns on two cores.
# Where there is a Chromium one notebook runs in it; what drives it is installed then, and the test skips if that fails.
test: setup ## all tests
	@if { command -v chromium || command -v google-chrome; } >/dev/null 2>&1 && ! $(BIN)/python -c 'import playwright' 2>/dev/null; then \
	  $(PIP) install --quiet --disable-pip-version-check -e '.[browser]' || echo "No playwright: the browser test will skip." >&2; \
	fi
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadscope --no-loadscope-reorder $(TEST_ARGS)

# The oldest transformers that pyproject.toml allows, in a place of its own; the newest is the one of `make test`.
OLDEST := transformers==5.2.0
MATRIX_TESTS := tests/test_exactness.py tests/test_families.py tests/test_engine.py

test-oldest: setup ## exactness, families and engine with the oldest allowed transformers (.venv-old)
	@test -x .venv-old/bin/python || { $(BIN)/python -m venv .venv-old && .venv-old/bin/pip install --quiet '$(TORCH)'; }
	@.venv-old/bin/pip install --quiet '$(OLDEST)' -e '.[dev]'
	@OMP_NUM_THREADS=1 .venv-old/bin/python -m pytest -n $(TEST_WORKERS) --dist loadscope $(MATRIX_TESTS) $(TEST_ARGS)

test-matrix: test-oldest ## the same with the oldest and with the installed one
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadscope $(MATRIX_TESTS) $(TEST_ARGS)

test-processors: setup ## the numerical tests and the exact notebooks under three instruction sets, with 1 and 2 threads
	@$(BIN)/python tests/processors.py $(PROCESSORS_ARGS)

test-long: setup ## what takes minutes to hours: every architecture, long jobs, fuzzing, ties in bfloat16 (goes on where it stopped)
	@SPECMOE_RESULTS=docs/results $(BIN)/python -m pytest -m long tests $(TEST_ARGS)
	@$(BIN)/python tests/long/ties.py --out tests/long/results/ties.jsonl

mutate: setup ## plant deliberate bugs in the core and see whether a test notices; an hour, and goes on where it was ended (MUTATE_ARGS="--only votes")
	@$(BIN)/python tests/mutate.py $(MUTATE_ARGS)

browser-test: setup ## JupyterLab in Chromium runs every notebook (BROWSER=00_start_here: that one); pictures in reports/browser
	@$(BIN)/python -c 'import playwright' 2>/dev/null || $(PIP) install --quiet --disable-pip-version-check -e '.[browser]'
	@SPECMOE_BROWSER=$(BROWSER) $(BIN)/python -m pytest -m browser tests/browser $(TEST_ARGS)

# One root for notebooks/ and tutorials/, so that the links between them open.
lab: setup ## JupyterLab on the notebooks and the tutorials
	@$(BIN)/python -m jupyterlab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks $(LAB_ARGS)

SLIDES_OUT ?= reports/slides

slides: setup ## slides of the workshop plans and the handout, from the notebooks, in reports/slides
	@$(BIN)/python -m specmoe.lab.workshop slides --out $(SLIDES_OUT)

# Packages come from the network, one set for each platform: some minutes, and some GB on the stick.
USB_OUT ?= reports/usb
USB_ARGS ?=

usb: setup ## a kit for a room without a network: Linux, macOS, Windows (USB_ARGS="--platforms linux --python 3.12")
	@$(BIN)/python -m specmoe.lab.workshop usb --out $(USB_OUT) $(USB_ARGS)

notebook-times: setup ## how long each notebook takes, into docs/results/notebook_times.json; let nothing else run meanwhile
	@$(SPIN) $(BIN)/python -m specmoe.lab.workshop times

notebooks: setup ## execute all notebooks, by papermill and again under nbval (NOTEBOOKS_OUT=notebooks: in place, to commit them)
	@mkdir -p $(NOTEBOOKS_OUT)
	@set -e; for notebook in notebooks/*.ipynb; do \
	  test -e "$$notebook" || { echo "There is no notebook in notebooks/." >&2; exit 1; }; \
	  $(SPIN) $(BIN)/python -m papermill --cwd notebooks --no-progress-bar "$$notebook" "$(NOTEBOOKS_OUT)/$$(basename "$$notebook")"; \
	done
	@$(SPIN) $(BIN)/python -m pytest $(NBVAL) --nbval --nbval-sanitize-with=tests/nbval_sanitize.cfg \
	  $(EXACT_NOTEBOOKS:%=notebooks/%.ipynb)
	@$(SPIN) $(BIN)/python -m pytest $(NBVAL) --nbval-lax \
	  $(filter-out $(EXACT_NOTEBOOKS:%=notebooks/%.ipynb),$(wildcard notebooks/*.ipynb)) tutorials/solutions

BENCH = $(SPIN) $(BIN)/python -m specmoe.lab.bench.run

bench: setup ## measure every target in windows of 21 s, print it beside its floor (BENCH_ARGS="--only skewed-native")
	@$(BENCH) $(BENCH_ARGS)

# Weights of a real model's shape are made in REAL, or found there; llama.cpp is measured where llama_cpp is importable.
REAL ?= reports/real
bench-real: setup ## speed at real size against llama.cpp and accelerate (BENCH_ARGS="--estimate": only what it needs; REAL=DIR: where)
	@$(SPIN) $(BIN)/python -m specmoe.lab.bench.real run $(REAL) $(BENCH_ARGS)


bench-quick: setup ## the same at fewer points, in under 10 minutes, into reports/bench-quick
	@$(BENCH) --length quick --out reports/bench-quick $(BENCH_ARGS)

# Builds, checks, and uses the wheel in an environment of its own, which borrows torch and the rest from .venv;
# WHEEL_ARGS=--fresh downloads what the wheel declares.
WHEEL_OUT ?= reports/wheel
WHEEL_ARGS ?=
wheel-check: setup ## build the sdist and the wheel, install the wheel elsewhere, do there what the README says
	@$(BIN)/python -c 'import build, setuptools, twine' 2>/dev/null || $(PIP) install --quiet --disable-pip-version-check -e '.[release]'
	@$(BIN)/python tests/wheel_check.py --out $(WHEEL_OUT) $(WHEEL_ARGS)

# From the pages and the committed notebooks, without a network; a warning or a dead link between pages fails.
DOCS_OUT ?= reports/docs
docs: setup ## the docs site, in reports/docs
	@$(BIN)/python -c 'import sphinx, myst_nb, furo' 2>/dev/null || $(PIP) install --quiet --disable-pip-version-check -e '.[docs]'
	@$(BIN)/python -m sphinx -q -W --keep-going -c docs . $(DOCS_OUT)
	@echo $(DOCS_OUT)/index.html

# Of the core (above the wall), by its own quick tests; pyproject.toml has the floor.
COVERAGE_TESTS := $(addprefix tests/test_,options.py pool.py eviction.py store.py round.py sampling.py planner.py kv_cache.py sources.py gguf.py)
coverage: setup ## lines of the core that its quick tests run, against a floor
	@OMP_NUM_THREADS=1 $(BIN)/python -m coverage run -m pytest -q -p no:cacheprovider -m 'not slow and not long' $(COVERAGE_TESTS)
	@$(BIN)/python -m coverage report

sizes: setup ## lines of every room against their budgets, and what is larger than the house allows
	@$(BIN)/python tests/sizes.py

lint: setup ## ruff: rules and format, notebooks included; mypy and pyright: what a user's program touches
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/python -c 'import mypy, pyright' 2>/dev/null || $(PIP) install --quiet --disable-pip-version-check -e '.[types]'
	@$(BIN)/mypy
	@$(BIN)/pyright

clean: ## remove caches and build leftovers; .venv and reports/ stay
	@rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	@find . -path ./$(VENV) -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -print0 | xargs -0 rm -rf
