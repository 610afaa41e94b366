# Everything a person types. Set-up takes a minute the first time and nothing afterwards.
PYTHON ?= python3
CORES ?= all
SCALE ?= smoke
PAPERS ?=
BIN := .venv/bin
PAPERTRIAL := $(BIN)/python -m papertrial

.DEFAULT_GOAL := help
.PHONY: help setup atlas laptop cost dry test test-all test-cluster lint format record snapshot restore prune crate
.PHONY: docs envs bench

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: .venv/.ready ## .venv from the pinned lock

.venv/.ready: envs/cpu.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -r envs/cpu.lock
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

atlas: setup ## run every trial at SCALE (smoke) and write the atlas; PAPERS="convex/*" for some
	$(PAPERTRIAL) unlock
	$(BIN)/snakemake --cores $(CORES) --config scale=$(SCALE) $(if $(PAPERS),papers="$(PAPERS)")

laptop: ## the same at laptop scale: the verdicts (hours)
	$(MAKE) atlas SCALE=laptop

cost: setup ## the price of what would run now at SCALE, for PAPERS; FLAGS="--device cuda"
	$(PAPERTRIAL) cost $(PAPERS) --scale $(SCALE) $(FLAGS)

dry: setup ## what would run now, and its price
	$(BIN)/snakemake -n --config scale=$(SCALE) $(if $(PAPERS),papers="$(PAPERS)")
	@$(MAKE) --no-print-directory cost

test: setup ## the fast tests
	$(BIN)/python -m pytest -n auto

test-all: setup ## the slow ones, too
	$(BIN)/python -m pytest -n auto -m ''

test-cluster: setup ## against a real one-node Slurm that it starts and stops; root on Debian, loopback only
	$(BIN)/python -m pytest tests/cluster -m ''

lint: setup ## formatting, linting, the workflow's own linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint

format: setup ## put everything in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow

record: setup ## write data/recorded/ from finished laptop-scale runs
	$(PAPERTRIAL) record $(PAPERS)

snapshot: setup ## put finished artifacts under DVC, push them, refresh data/recorded/
	$(PAPERTRIAL) snapshot

restore: setup ## pull somebody's results; PAPERS="convex/*" for some
	$(PAPERTRIAL) restore $(PAPERS)

prune: setup ## remove artifacts of fingerprints that nothing here names
	$(PAPERTRIAL) prune

crate: setup ## export PAPERS as an RO-Crate to the folder crate/
	$(PAPERTRIAL) crate crate $(PAPERS)

docs: setup ## generate config/README.md from the typed settings
	$(PAPERTRIAL) settings > config/README.md

envs: setup ## generate the locks, conda's yaml and the containers from envs/cuda.lock
	$(BIN)/python envs/generate.py

bench: setup ## print the engine's measures
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/versions.py
	$(BIN)/python benchmarks/atlas.py
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python benchmarks/convex.py
