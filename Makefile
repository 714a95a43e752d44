# make lab | run | test | notebooks | lock | clean. Each sets up what it needs on first use.
#   PYTHON=python3.12   the interpreter that makes the environment (3.11 or newer)
#   VENV=folder         where the environment goes
#   PIP_FLAGS=...       more options for pip. PyPI's torch for Linux brings CUDA (several GB);
#                       PIP_FLAGS='--extra-index-url https://download.pytorch.org/whl/cpu' does not
PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?=
LOCK := binder/constraints.txt
TORCH ?= $(shell sed -n 's/^torch==//p' $(LOCK))
PY := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: help lab run test notebooks lock clean

define check_python
@command -v $(PYTHON) > /dev/null || \
  { echo "There is no $(PYTHON). Name a Python 3.11 or newer: make lab PYTHON=python3.12"; exit 1; }
@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("$(PYTHON) is Python %d.%d, \
this needs 3.11 or newer. Name one: make lab PYTHON=python3.12" % sys.version_info[:2])'
endef

help:
	@echo "make lab        set up on first use, open JupyterLab on notebook 00"
	@echo "make run        execute every notebook, write HTML to build/html"
	@echo "make test       run all tests: helpers and notebooks"
	@echo "make notebooks  execute every notebook in place (after a change)"
	@echo "make lock       write $(LOCK) anew (TORCH=version to change torch)"
	@echo "make clean      remove the environment and all that was built"

lab: $(READY)
	$(PY) -m jupyterlab notebooks/00_start_here.ipynb

run: $(READY)
	$(PY) -m nbconvert --execute --to html --output-dir build/html notebooks/*.ipynb

test: $(READY)
	$(PY) -m pytest

notebooks: $(READY)
	$(PY) -m embspace_helpers.notebooks

$(READY): pyproject.toml $(LOCK)
	$(check_python)
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install $(PIP_FLAGS) -c $(LOCK) -e '.[test]'
	$(PY) -m embspace_helpers.fetch
	$(PY) -m embspace_helpers.atlas
	@touch $@

lock:
	$(check_python)
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install $(PIP_FLAGS) torch==$(TORCH) -e '.[test]'
	grep '^#' $(LOCK) > build/lock/header
	build/lock/bin/python -m pip freeze --all --exclude pip --exclude-editable \
	  | grep -vE '^(cuda|nvidia|triton)' | sed 's/+cpu$$//' > build/lock/pins
	cat build/lock/header build/lock/pins > $(LOCK)

clean:
	rm -rf $(VENV) build embspace_helpers.egg-info .pytest_cache
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
