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
RECIPE ?= cpu
MODELS ?=
MODEL ?= lenet
SPACE ?= reports
DROP ?=
TRANSFORMS ?=
TEACHER ?=
STORE ?= artifacts
THREADS ?= 2
OUT ?= reports
WORKERS ?= 3
ROWS ?=
SECONDS_EACH ?= 5

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
	$(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --dist loadscope --no-loadscope-reorder

.PHONY: test-slow
test-slow: $(READY) ## Run the tests that take minutes each
	$(BIN)/python -m pytest -m slow --timeout 3600

.PHONY: audit
audit: $(READY) ## Hold the report, the page and the documentation against Lighthouse (needs Node.js 18 or newer)
	npm ci --prefix tests/lighthouse --no-audit --no-fund
	$(BIN)/python -m pytest -m slow -k lighthouse -rs

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
train: $(READY) ## Train one network: make train MODEL=simcnn RECIPE=report
	$(BIN)/python -m training $(MODEL) --dataset $(DATASET) $(if $(ROOT),--root $(ROOT)) --recipe $(RECIPE) --store $(STORE)

.PHONY: train-all
train-all: $(READY) ## Train the whole family by its cpu recipes, up to 2¼ hours each; RECIPE=report takes others
	$(BIN)/python -m training all --dataset $(DATASET) $(if $(ROOT),--root $(ROOT)) --recipe $(RECIPE) --store $(STORE) $(if $(MODELS),--models $(MODELS))

.PHONY: sweep
sweep: $(READY) ## Train one network by many recipes: make sweep MODEL=mobilenetv2 SPACE=reports
	$(BIN)/python -m training sweep $(MODEL) --dataset $(DATASET) $(if $(ROOT),--root $(ROOT)) --space $(SPACE)

.PHONY: seeds
seeds: $(READY) ## Train one recipe with three seeds: make seeds MODEL=lenet TEACHER=simcnn
	$(BIN)/python -m training seeds $(MODEL) --dataset $(DATASET) $(if $(ROOT),--root $(ROOT)) --recipe $(RECIPE) --store $(STORE) $(if $(TEACHER),--teacher $(TEACHER))

.PHONY: export-all
export-all: $(READY) ## Convert every trained model to every format and prove what it cost; DROP=0.3 sets a budget, TRANSFORMS=prune80 compresses first
	$(BIN)/python -m export all --store $(STORE) $(if $(TRANSFORMS),--transforms $(TRANSFORMS)) $(if $(DROP),--max-accuracy-drop $(DROP))

.PHONY: benchmark
benchmark: $(READY) ## Measure accuracy, latency and size of every variant, and write the report
	$(BIN)/python -m benchmarks run --store $(STORE) --threads $(THREADS) --out $(OUT) $(if $(MODELS),--models $(MODELS))

.PHONY: compression
compression: $(READY) ## Measure the transforms that are exported to ONNX, and write docs/compression.md
	$(BIN)/python -m benchmarks run --store $(STORE) --formats onnx --no-http --threads $(THREADS) --out $(OUT)/compression $(if $(MODELS),--models $(MODELS))
	$(BIN)/python -m benchmarks compression --results $(OUT)/compression/results.json

.PHONY: stems
stems: $(READY) ## Measure int8 on the networks with the CIFAR stem, untrained as they are, for docs/compression.md
	@for model in resnet50 mobilenetv2; do \
	  $(BIN)/python -m training $$model --dataset digits --recipe reference --epochs 1 --store build/stems; done
	$(BIN)/python -m export all --formats onnx --precisions fp32,int8 --store build/stems
	$(BIN)/python -m benchmarks run --store build/stems --no-http --threads $(THREADS) --out $(OUT)/stems
	$(BIN)/python -m benchmarks stems --results $(OUT)/stems/results.json

.PHONY: training-speed
training-speed: $(READY) ## Measure the training loop against a bare model.fit
	$(BIN)/python -m benchmarks.training_speed

.PHONY: benchmark-compare
benchmark-compare: $(READY) ## Fail where the last measurements are slower than a saved run: make benchmark-compare AGAINST=results/….json
	$(BIN)/python -m benchmarks compare --results $(OUT)/results.json $(if $(AGAINST),--against $(AGAINST))

.PHONY: repeatability
repeatability: $(READY) ## Measure three times and fail where the runs do not agree
	$(BIN)/python -m benchmarks.repeat --store $(STORE) --threads $(THREADS) $(if $(MODELS),--models $(MODELS))

.PHONY: scale
scale: $(READY) ## Hold the simulation against the real service (two minutes), and write docs/scale.md
	$(BIN)/python -m benchmarks.scale check
	$(BIN)/python -m benchmarks.scale page

PEERS ?= .venv-peers
ROUNDS ?=
comma := ,
$(PEERS)/.installed: pyproject.toml
	@[ -x $(PEERS)/bin/python ] || $(PYTHON) -m venv $(PEERS)
	@echo "installing Microsoft Olive and NNCF into $(PEERS) (about 6 GB with PyTorch) ..."
	@$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check '.[peers]' \
	  || echo "not all peers could be installed; their rows will say so"
	@touch $@

.PHONY: peers-export
peers-export: $(READY) $(PEERS)/.installed ## Compare our variants with Olive's and NNCF's: make peers-export MODELS=lenet,simcnn
	$(BIN)/python -m benchmarks.peers.export $(subst $(comma), ,$(MODELS)) --store $(STORE) \
	  --threads $(THREADS) --python $(PEERS)/bin/python --out $(OUT)/peers-export.json

SERVING_PEERS := litserve mlserver ray
$(PEERS)/%/.installed: pyproject.toml requirements/dev.txt | $(READY)
	@echo "installing $* into $(PEERS)/$* (about 300 MB) ..."
	@[ -x $(PEERS)/$*/bin/python ] || $(BIN)/uv venv --quiet --python $(BIN)/python $(PEERS)/$*
	@grep -E '^(numpy|onnxruntime|pillow)==' requirements/dev.txt | tr -d '\\' > $(PEERS)/$*/same.txt
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(PEERS)/$*/bin/python -r pyproject.toml --extra peers-$* \
	  -c $(PEERS)/$*/same.txt && touch $@ || echo "$* could not be installed; its row will say so"

.PHONY: peers-setup
peers-setup: $(SERVING_PEERS:%=$(PEERS)/%/.installed) ## Install LitServe, MLServer and Ray Serve, each into an environment of its own

.PHONY: peers-serving
peers-serving: peers-setup ## Compare the service with its peers: make peers-serving MODEL=simcnn
	$(BIN)/python -m benchmarks.peers.serving --environments $(PEERS) --out $(OUT)/peers-serving.json --seconds $(SECONDS_EACH) \
	  --model $(MODEL) --store $(if $(wildcard $(STORE)/$(MODEL)/card.json),$(STORE),zoo) $(if $(ROUNDS),--rounds $(ROUNDS))

.PHONY: peers
peers: BEGAN := $(shell date -u +%Y-%m-%dT%H:%M:%SZ)
peers: $(READY) ## Optimization, serving and training beside their peers, and one summary; a part that fails is told there
	-@$(MAKE) --no-print-directory peers-export
	-@$(MAKE) --no-print-directory peers-serving
	-@$(BIN)/python -m benchmarks.training_speed --out $(OUT)/training-speed.json
	@$(BIN)/python -m benchmarks.peers.summary --reports $(OUT) --since $(BEGAN)

.PHONY: report
report: $(READY) ## Write the report again from the last measurements
	$(BIN)/python -m benchmarks report --results $(OUT)/results.json --out $(OUT)

.PHONY: publish
publish: $(READY) ## Put the last measurements into results/ and the README
	$(BIN)/python -m benchmarks publish --results $(OUT)/results.json

.PHONY: serve
serve: $(READY) ## Serve the store's variants on port 3000
	MODELKILN_STORE=$(STORE) $(BIN)/bentoml serve

.PHONY: load
load: $(READY) ## Put the service under load, beside a hand-written application: make load ROWS=predict,v2
	$(BIN)/python -m benchmarks.load --seconds $(SECONDS_EACH) --out $(OUT)/load.json $(if $(ROWS),--rows $(ROWS))

.PHONY: chaos
chaos: $(READY) ## Make every fault of the service happen, fuzz it, and write docs/faults.md
	$(BIN)/python -m tests.serving.chaos

.PHONY: screenshots
screenshots: $(READY) ## Take the pictures of the page that the documentation shows (needs Chromium)
	$(BIN)/python -m tests.serving.screenshots

.PHONY: bento
bento: $(READY) ## Pack the service and its variants into a bento
	$(BIN)/bentoml build

.PHONY: docs
docs: $(READY) ## Build the documentation site into site/; it needs no network
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.PHONY: docs-serve
docs-serve: $(READY) ## Show the documentation while you write it, on port 8000
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

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
	rm -rf build dist site .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
