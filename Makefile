# Two commands do all the set-up: `make demo` and `make test`.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
AGENTS ?= 16
N ?= 1000000
SEED ?= 0
JOBS ?= $(shell nproc)
MERMAID := build/mermaid/node_modules/mermaid/dist/mermaid.min.js
export FLWR_HOME := $(CURDIR)/.flwr
export FLWR_TELEMETRY_ENABLED := 0
export OMP_NUM_THREADS ?= 1
# Hundreds of processes load the same modules: let the first of them keep what it compiled.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo demo-deployment docs pictures test test-families test-small simulate check lint mutants reference install help

help:
	@echo "make demo         train 16 agents on a ring with no aggregating server"
	@echo "make demo-peers   the same with 8 peers and no server at all"
	@echo "make demo-deployment  a SuperLink with TLS and 8 SuperNodes with keys of their own"
	@echo "make test         run all tests"
	@echo "make test-families  apps of JAX, Keras, Lightning and others (installs them)"
	@echo "make test-small   a bare environment with the extra peer, and two peers in it: sizes"
	@echo "make simulate N=1000000  the peers' protocol under so many simulated events (SEED=, JOBS=)"
	@echo "make check        lint, types, security scan, quick tests"
	@echo "make docs         the documentation as a site that opens from the disk: build/docs"
	@echo "make reference    write docs/reference.md, the page of all keys, from the code"
	@echo "make pictures     draw the pictures of the docs, those of the demo from its kept rounds"
	@echo "make mutants      break each rule of the peers' protocol, and see what notices"

demo: install
	@$(BIN)/flower-dhb run . --run-config 'topology="ring:$(AGENTS)" observe-average=true name="demo"'

demo-deployment: install
	@$(BIN)/python -m deploy.demo

# Fast tests share the cores. Runs of Flower mostly wait, for each other and for programs to
# start, so they go three at a time. Peers that must keep short deadlines have less beside them;
# tests that keep the processors busy (the group `busy`) never run beside each other.
# In both the longest come first.
GROUPS := --dist loadgroup --no-loadscope-reorder
XDIST := -n auto --dist loadfile --no-loadscope-reorder
QUICK := $(BIN)/python -m pytest -m "not slow and not thorough" $(XDIST)
FAST := $(BIN)/python -m pytest -m "not slow" $(XDIST)
SLOW := $(BIN)/python -m pytest -m "slow and not alone" -n 3 $(GROUPS)
ALONE := $(BIN)/python -m pytest -m "slow and alone" -n 2 $(GROUPS)
# A machine that stalls for seconds breaks a deadline, and no code is at fault. The slow
# tests that have failed are tried once more, with nothing beside it; both outcomes stay in sight.
AGAIN := $(BIN)/python -m pytest --last-failed --last-failed-no-failures none -n 1 $(GROUPS)

test: install
	@$(FAST)
	@$(SLOW) || $(AGAIN) -m "slow and not alone"
	@$(ALONE) || $(AGAIN) -m "slow and alone"

test-families: install
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,families]'
	@KERAS_BACKEND=torch $(BIN)/python -m pytest -m families

# Needs Python alone, and makes an environment of its own.
test-small:
	@$(PYTHON) -m tests.support.small

simulate: install
	@$(BIN)/python -m tests.simulation --events $(N) --seed $(SEED) --jobs $(JOBS)

check: lint
	@$(QUICK)

lint: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/bandit -q -r flower_dhb strategies clients -c pyproject.toml

mutants: install
	@$(BIN)/python -m tests.mutation.protocol

docs: install
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "build/docs/index.html"

reference: install
	@$(BIN)/python -m tests.reference

# DEMO=--demo runs the demo anew first. Mermaid draws the diagrams, in Chromium.
pictures: install
	@test -f $(MERMAID) || npm install --silent --no-audit --no-fund --prefix build/mermaid mermaid@11
	@$(BIN)/python -m tests.pictures --mermaid $(MERMAID) $(DEMO)

install: $(STAMP)

$(STAMP): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "make: '$(PYTHON)' is missing: install Python 3.11 or newer, or set PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $(PYTHON) is $$($(PYTHON) -V 2>&1), needed is Python 3.11 or newer; set PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "make: Python's venv module is missing: install it (Debian: apt-get install python3-venv)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (the first time this takes some minutes: torch is large) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' || { echo "make: the installation failed; see the lines above"; exit 1; }
	@touch $(STAMP)

include peers.mk
