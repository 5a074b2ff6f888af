# The commands of this project; `make help` lists them. Needs git, make and Python >= 3.11.

PYTHON ?= python3
UV_VERSION := 0.13.8
VENV := .venv
BIN := $(VENV)/bin
# uv lives in a venv of its own, so that installing the lock exactly does not remove it.
UV := $(VENV)/installer/bin/uv
STAMP := $(VENV)/.installed
# The command line of this project; most targets below are aliases of its commands.
PROGRAM := $(BIN)/ovis-dag

export UV_PYTHON_DOWNLOADS := never
export UV_NO_CONFIG := 1
# Each stage is a process of its own, and importing torch uncompiled costs it three seconds.
export UV_COMPILE_BYTECODE := 1

.DEFAULT_GOAL := help
.PHONY: help repro plan predict profile fetch test test-workers workers-demo lint types docs verify readme schema
.PHONY: sweep claims pools worker bench bench-flow bench-memory bench-photographs bench-laptop cost lock ui prefect clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

repro: $(PROGRAM) ## run whatever is not up to date; POOL=1: on workers
	@$(BIN)/ovis-dag run $(if $(POOL),--pools)

plan: $(PROGRAM) ## say what `make repro` would run, and why; run nothing; POOL=1: on workers
	@$(BIN)/ovis-dag plan $(if $(POOL),--pools)

predict: $(PROGRAM) ## IMAGES=folder NAMES="cup,red car": find and outline objects in new images
	@$(BIN)/ovis-dag predict "$(or $(IMAGES),$(error IMAGES is missing: make predict IMAGES=folder NAMES="a,b"))" \
		$(if $(NAMES),--names "$(NAMES)") $(if $(MODEL),--model "$(MODEL)")

profile: $(PROGRAM) ## NAME=smoke: merge experiments/smoke.yaml into params.yaml
	@$(BIN)/ovis-dag profile $(or $(NAME),$(error NAME is missing: make profile NAME=smoke))

fetch: $(PROGRAM) ## fetch the COCO or Open Images files that params.yaml needs; MIRROR=folder|address WORKERS=32
	@$(BIN)/ovis-dag fetch $(if $(MIRROR),--mirror "$(MIRROR)") \
		$(if $(WORKERS),--workers $(WORKERS))

test: $(PROGRAM) ## run all tests on two workers; SEED=n: in the order of the run that printed this seed
	@$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not workers" \
		$(if $(SEED),--randomly-seed=$(SEED)) tests

test-workers: $(STAMP) ## test failures of real workers and servers on loopback, up to a quarter of an hour
	@$(BIN)/python -m pytest -m workers tests/flows

workers-demo: $(STAMP) ## run the smoke profile on workers on loopback, one of which is lost
	@$(BIN)/python -m benchmarks.workers_demo

lint: $(STAMP) ## check style and the import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-cache

types: $(STAMP) ## check types; takes seconds for a change, a minute for everything
	@$(BIN)/mypy

docs: $(STAMP) ## build the pages of docs/ as a site in site/; broken links are errors
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

verify: $(PROGRAM) ## hash all results and their copies in the cache again; compare with dvc.lock
	@$(BIN)/ovis-dag verify

readme: $(PROGRAM) ## write the generated tables and figures of README.md and docs/
	@$(BIN)/ovis-dag readme

schema: $(PROGRAM) ## write the schemas of params.yaml and profiles, and the table in docs/params.md
	@$(BIN)/ovis-dag schema

sweep: $(PROGRAM) ## SET="activation.rounds=0,1 seed=0,1": compare params, in parallel; POOL=1: on workers
	@$(BIN)/ovis-dag sweep $(foreach axis,$(SET),-S '$(axis)') $(if $(POOL),--pools) $(OPTIONS)

claims: $(PROGRAM) ## SEEDS="1 2 3": measure the claims, each seed once, into docs/claims; POOL=1: on workers
	@$(BIN)/ovis-dag claims $(SEEDS) $(if $(POOL),--pools) $(OPTIONS)

bench: $(STAMP) ## measure each stage's core on inputs of real size (ten minutes, idle machine)
	@$(BIN)/python -m benchmarks.stages

bench-flow: $(STAMP) ## measure what the flow costs compared with plain `dvc repro`
	@$(BIN)/python -m benchmarks.flow

bench-memory: $(STAMP) ## measure peak memory with 1,000 to 20,000 images (hours)
	@$(BIN)/python -m benchmarks.memory

bench-photographs: $(STAMP) ## measure what photographs of 24 megapixels cost
	@$(BIN)/python -m benchmarks.photographs

bench-laptop: $(STAMP) ## COCO=folder: measure the profile coco-laptop in part, with random weights
	@$(BIN)/python -m benchmarks.laptop "$(or $(COCO),$(error COCO is missing: make bench-laptop COCO=folder))" \
		$(OPTIONS)

cost: $(STAMP) ## predict hours and traffic of the paper's experiments on 1, 8 and 64 GPU workers
	@$(BIN)/python -m benchmarks.cost

ui: $(PROGRAM) ## open the MLflow page on http://127.0.0.1:5000
	@exec $(BIN)/ovis-dag ui

pools: $(PROGRAM) ## make work pools and deployments on the Prefect server of PREFECT_API_URL
	@$(BIN)/ovis-dag pools

worker: $(PROGRAM) ## POOL=gpu: make this clone a worker of that pool, until it is stopped
	@exec $(BIN)/ovis-dag worker --pool $(or $(POOL),$(error POOL is missing: make worker POOL=gpu))

prefect: $(PROGRAM) ## open Prefect's pages on http://127.0.0.1:4200
	@exec $(BIN)/ovis-dag prefect

lock: $(UV) ## pin the newest packages that pyproject.toml allows, and those of the stages alone
	@$(UV) pip compile pyproject.toml --extra flows --extra dev --universal --generate-hashes \
		--no-header --upgrade -o requirements.lock
	@$(UV) pip compile pyproject.toml --universal --no-header --no-annotate --quiet \
		--constraint requirements.lock -o requirements-stages.lock

clean: ## remove the environment, results, caches and what flows keep
	rm -rf $(VENV) site .prefect .flows .resume .sweeps mlflow.db* mlruns .dvc/cache .dvc/tmp
	rm -rf .pytest_cache .hypothesis .ruff_cache .mypy_cache .import_linter_cache
	git worktree prune
	find data -mindepth 1 -maxdepth 1 ! -name README.md -exec rm -rf {} +
	find benchmarks claims comparators fetch flows predict stages tests -name __pycache__ -exec rm -rf {} +

$(UV):
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else \
		"Python >= 3.11 is needed, $(PYTHON) is %d.%d; try: make PYTHON=python3.12 …" % v[:2])'
	$(PYTHON) -m venv $(VENV)/installer
	$(VENV)/installer/bin/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

# A changed lock is installed exactly: what it does not name is removed.
$(STAMP): requirements.lock | $(UV)
	$(PYTHON) -m venv --without-pip $(VENV)
	$(UV) pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	@touch $@

# `compat` puts the folder itself on the path: no hook that every process of every stage runs.
$(PROGRAM): pyproject.toml $(STAMP)
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation \
		--config-settings editable_mode=compat --editable .
	@touch $@
