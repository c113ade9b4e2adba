# The front door. `make help` lists every target.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= $(shell command -v python3.11 || command -v python3)
SET ?= $(if $(shell nvidia-smi -L 2>/dev/null),gpu,dev)
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed-$(SET)

DATASET ?= cifar10
RECIPE ?= report
MODELS ?=
MODEL ?= lenet
STORE ?= artifacts
THREADS ?= 2
OUT ?= reports

.PHONY: help
help: ## List the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  \033[36m%-16s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  Variables: MODEL, MODELS (comma-separated), DATASET, ROOT, RECIPE, STORE, THREADS, OUT, SET (dev or gpu)"

$(READY): requirements/$(SET).txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v in ((3, 11), (3, 12)) or sys.exit("error: this is Python %d.%d; modelkiln needs 3.11. Say which: make PYTHON=/path/to/python3.11" % v)'
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@echo "installing $$(grep -c '==' $<) pinned packages from $< into $(VENV) (about 3 GB, a few minutes) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@rm -f $(VENV)/.installed-*; touch $@

.PHONY: setup
setup: $(READY) ## Create .venv and install the hash-locked requirements

.PHONY: quickstart
quickstart: $(READY) ## Train, export, measure, report and serve on the embedded digits, offline
	@$(BIN)/python quickstart.py --model $(MODEL)

.PHONY: test
test: $(READY) ## Run the tests (under 10 minutes on two cores)
	$(BIN)/python -m pytest -m "not slow"

.PHONY: test-slow
test-slow: $(READY) ## Run the tests that take minutes each
	$(BIN)/python -m pytest -m slow --timeout 3600

.PHONY: check
check: $(READY) ## The gate: format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy .

.PHONY: format
format: $(READY) ## Mend formatting and what the linter can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: train
train: $(READY) ## Train one network: make train MODEL=simcnn RECIPE=cpu
	$(BIN)/python -m training $(MODEL) --dataset $(DATASET) $(if $(ROOT),--root $(ROOT)) --recipe $(RECIPE) --store $(STORE)

.PHONY: train-all
train-all: $(READY) ## Train the whole family: make train-all DATASET=cifar10
	$(BIN)/python -m training all --dataset $(DATASET) $(if $(ROOT),--root $(ROOT)) --recipe $(RECIPE) --store $(STORE) $(if $(MODELS),--models $(MODELS))

.PHONY: export-all
export-all: $(READY) ## Convert every trained model to every format and prove what it cost
	$(BIN)/python -m export all --store $(STORE)

.PHONY: benchmark
benchmark: $(READY) ## Measure accuracy, latency and size of every variant, and write the report
	$(BIN)/python -m benchmarks run --store $(STORE) --threads $(THREADS) --out $(OUT) $(if $(MODELS),--models $(MODELS))

.PHONY: training-speed
training-speed: $(READY) ## Measure the training loop against a bare model.fit
	$(BIN)/python -m benchmarks.training_speed

.PHONY: report
report: $(READY) ## Write the report again from the last measurements
	$(BIN)/python -m benchmarks report --results $(OUT)/results.json --out $(OUT)

.PHONY: publish
publish: $(READY) ## Put the last measurements into results/ and the README
	$(BIN)/python -m benchmarks publish --results $(OUT)/results.json

.PHONY: serve
serve: $(READY) ## Serve the store's variants on port 3000
	MODELKILN_STORE=$(STORE) $(BIN)/bentoml serve

.PHONY: bento
bento: $(READY) ## Pack the service and its variants into a bento
	$(BIN)/bentoml build

.PHONY: lock
lock: $(READY) ## Renew requirements/*.txt from pyproject.toml (add UPGRADE=--upgrade for newer versions)
	@for set in dev train export serve bench sweep; do \
	  $(BIN)/uv pip compile pyproject.toml --extra $$set $$([ $$set = dev ] || echo -c requirements/dev.txt) \
	    --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet \
	    $$([ $$set = dev ] && echo "$(UPGRADE)") -o requirements/$$set.txt; done
	@$(BIN)/uv pip compile pyproject.toml --extra gpu --override requirements/gpu-overrides.txt \
	  --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet $(UPGRADE) -o requirements/gpu.txt

.PHONY: clean
clean: ## Remove what was built; trained models in artifacts/ stay
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
