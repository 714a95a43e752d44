# make help lists the commands. Each sets up what it needs on first use.
#   PYTHON=python3.12   the interpreter that makes the environment (3.11 or newer)
#   VENV=folder         where the environment goes
#   PIP_FLAGS=...       more options for pip, such as PIP_FLAGS='--proxy http://host:port'
# Set-up takes torch's CPU build where it can be had: see embspace_helpers/workshop/install.py.
PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?=
LOCK := binder/constraints.txt
INSTALL := embspace_helpers/workshop/install.py
TORCH ?= $(shell sed -n 's/^torch==//p' $(LOCK))
PY := $(VENV)/bin/python
PAGE := embspace_helpers/workshop/html.j2
HOOK := embspace_helpers.workshop.jupyter_hook.keep_metadata
# What is set up already: the packages, the models, the developers' tools.
PACKAGES := $(VENV)/.packages
READY := $(VENV)/.ready
TOOLS := $(VENV)/.tools

# Two files at a time, the notebooks, which take longest, first. WORKERS=0: one after the other.
WORKERS ?= $(if $(COVERAGE),0,2)
FILES_APART = -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: help lab run test notebooks doctor atlases lint test-machines memory bench lock clean

define check_python
@command -v $(PYTHON) > /dev/null || \
  { echo "There is no $(PYTHON). Name a Python 3.11 or newer: make lab PYTHON=python3.12"; exit 1; }
@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("$(PYTHON) is Python %d.%d, \
this needs 3.11 or newer. Name one: make lab PYTHON=python3.12" % sys.version_info[:2])'
endef

help:
	@echo "make lab            set up on first use, open JupyterLab on notebook 00"
	@echo "make doctor         check this machine: one line a check"
	@echo "make run            execute every notebook, write HTML to build/html"
	@echo "make test           run all tests: helpers and notebooks, two files at"
	@echo "                    a time (WORKERS=0: one; COVERAGE=yes: which lines ran)"
	@echo "For developers:"
	@echo "make notebooks      execute every notebook in place (after a change)"
	@echo "make lint           ruff on all code and notebooks, mypy on the helper"
	@echo "make test-machines  hold the notebooks' results on other numbers of threads"
	@echo "make memory         hold the notebooks within Binder's memory"
	@echo "make bench          measure speed and memory, write the README's table"
	@echo "make lock           write $(LOCK) anew (TORCH=version to change torch)"
	@echo "make clean          remove the environment and all that was built"

lab: $(READY)
	$(PY) -m jupyterlab --ContentsManager.pre_save_hook=$(HOOK) notebooks/00_start_here.ipynb

doctor:
	@test -x $(PY) || { echo "[fail] environment: there is none in $(VENV). Run: make lab"; exit 1; }
	@$(PY) -m embspace_helpers.doctor

run: atlases
	$(PY) -m nbconvert --execute --to html --template-file $(PAGE) --output-dir build/html \
	  notebooks/*.ipynb

test: atlases
	$(PY) -m $(if $(COVERAGE),coverage run -m )pytest $(FILES_APART)
	$(if $(COVERAGE),$(PY) -m coverage report)

notebooks: atlases
	$(PY) -m embspace_helpers.notebooks

# A notebook builds the atlas it lacks. Built here first, a notebook's time and output are the same
# on every machine.
atlases: $(READY)
	$(PY) -m embspace_helpers.atlas

lint: $(TOOLS)
	$(PY) -m ruff check
	$(PY) -m mypy

test-machines: atlases
	$(PY) -m embspace_helpers.machines

memory: atlases
	$(PY) -m embspace_helpers.binder_memory

bench: $(READY)
	$(PY) tests/benchmarks/run.py $(BENCH)

$(PACKAGES): pyproject.toml $(LOCK) $(INSTALL)
	$(check_python)
	$(PYTHON) -m venv $(VENV)
	$(PY) $(INSTALL) $(PIP_FLAGS)
	@touch $@

$(READY): $(PACKAGES)
	$(PY) -m embspace_helpers.fetch
	@touch $@

$(TOOLS): $(PACKAGES)
	$(PY) $(INSTALL) --extras test,dev $(PIP_FLAGS)
	@touch $@

lock:
	$(check_python)
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	echo 'torch==$(TORCH)' > build/lock/torch
	build/lock/bin/python $(INSTALL) --extras test,dev --constraints build/lock/torch $(PIP_FLAGS)
	grep '^#' $(LOCK) > build/lock/header
	build/lock/bin/python -m pip freeze --all --exclude pip --exclude-editable \
	  | grep -vE '^(cuda|nvidia|triton)' | sed 's/+cpu$$//' > build/lock/pins
	cat build/lock/header build/lock/pins > $(LOCK)

clean:
	rm -rf $(VENV) build embspace_helpers.egg-info .pytest_cache .ruff_cache .mypy_cache .coverage
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
