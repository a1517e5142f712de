# `make demo` shows the whole product, `make test` checks it. Both set up .venv first, once.

PYTHON ?= python3
# What pip is asked for in order to get PyTorch, which only `lira-edge export` needs. On Linux the package index
# serves the CUDA build (about 3 GB); the CPU build is enough: see "CPU-only PyTorch" in the README.
TORCH ?= torch==2.13.0
# onnxruntime for CPUs; `make ORT=cuda ...` installs onnxruntime-gpu in its place.
ORT ?= cpu

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(ORT)
CHECKPOINT := checkpoints/lira-nano
BUNDLE := bundles/lira-nano
SAMPLE := assets/sample.png

.PHONY: demo test lint bundle clean
.DELETE_ON_ERROR:

demo: bundle
	@mkdir -p demo
	$(BIN)/lira-edge run $(BUNDLE) --image $(SAMPLE) --task refseg --expression "$(REFSEG)" \
	  --overlay demo/refseg.png --json demo/refseg.json
	$(BIN)/lira-edge run $(BUNDLE) --image $(SAMPLE) --task gcg --overlay demo/gcg.png --json demo/gcg.json
	$(BIN)/lira-edge run $(BUNDLE) --image $(SAMPLE) --task vqa --expression "$(VQA)" --json demo/vqa.json

bundle: $(BUNDLE)/lira.json
	$(BIN)/lira-edge build $(BUNDLE) --target cpu

$(BUNDLE)/lira.json: $(STAMP) $(wildcard $(CHECKPOINT)/* $(CHECKPOINT)/*/*)
	$(BIN)/lira-edge export $(CHECKPOINT) -o $(BUNDLE) --overwrite

test: lint
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10), "lira-edge needs Python 3.10 or newer"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH) -e '.[$(ORT),export,nano,dev]'
	@rm -f $(VENV)/.installed-*
	@touch $@

clean:
	rm -rf $(VENV) bundles demo
