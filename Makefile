# `make demo` shows the whole product, `make test` checks it. Both set up .venv first, once.

PYTHON ?= python3
# What pip is asked for in order to get PyTorch, which only `lira-edge export` needs. On Linux the package index
# serves the CUDA build, which is several GB; the CPU build is enough (TORCH="torch --index-url ..." chooses it).
TORCH ?= torch==2.13.0

# Tests at once: each worker may take 4 GB.
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
HOLLOW := $(abspath $(VENV))/hollow
CHECKPOINT := checkpoints/lira-nano
BUNDLE := bundles/lira-nano
SAMPLE := assets/sample.png
# What is asked about the sample image.
REFSEG := the orange star
VQA := Is there a fish in the image? Please answer yes or no.

RUN = $(BIN)/lira-edge run $(BUNDLE) --image $(SAMPLE)

.PHONY: demo bundle test fuzz test-lowest test-gpu test-hollow test-examples kills soak newest lint clean
.DELETE_ON_ERROR:

demo: bundle
	@mkdir -p demo
	$(RUN) --task refseg --expression "$(REFSEG)" --overlay demo/refseg.png --json demo/refseg.json
	$(RUN) --task gcg --overlay demo/gcg.png --json demo/gcg.json
	$(RUN) --task vqa --expression "$(VQA)" --overlay demo/vqa.png --json demo/vqa.json

bundle: $(BUNDLE)/lira.json
	$(BIN)/lira-edge build $(BUNDLE) --target cpu

# Code that changes what export writes does so in export/.
$(BUNDLE)/lira.json: $(wildcard $(CHECKPOINT)/* $(CHECKPOINT)/*/*) $(wildcard export/lira_export/*.py export/lira_export/*/*.py) | $(STAMP)
	$(BIN)/lira-edge export $(CHECKPOINT) -o $(BUNDLE) --overwrite

# Many tests wait for servers, browsers and other processes. A file's tests stay together: they share what they build.
test: lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

# 2,000 questions through the API and through the server, and 200 openings: memory, descriptors and threads stay
# as they are (docs/trust.md). Then the same with a planted leak of each kind, which must end with 3.
SOAK = PYTHONPATH=tests/trust $(BIN)/python -m soak
soak: bundle
	$(SOAK) api $(BUNDLE)
	$(SOAK) server $(BUNDLE)
	$(SOAK) openings $(BUNDLE) --count 200
	@for way in api server; do for leak in arrays descriptor thread; do \
		$(SOAK) $$way $(BUNDLE) --count 200 --leak $$leak > /dev/null; \
		test $$? -eq 3 || { echo "$$way: the planted $$leak was not found"; exit 1; }; \
		echo "$$way: the planted $$leak was found"; \
	done; done

# Every harness of tests/trust/fuzz for MINUTES, by atheris where it is installed (.[fuzz]), else by hypothesis.
# What a stopped run found stays in FUZZ, and the next one goes on from it.
MINUTES ?= 60
FUZZ ?= $(VENV)/fuzz
fuzz: $(STAMP)
	PYTHONPATH=tests/trust $(BIN)/python -m fuzz --minutes $(MINUTES) --work $(FUZZ)

# The lowest versions that pyproject.toml names: exports, builds and runs lira-nano with them.
test-lowest:
	PYTHON='$(PYTHON)' TORCH='$(TORCH)' .ci/lowest

# Which packages that pyproject.toml asks for are installed in an older release than this Python allows, and why.
# Needs a network; without one it says so, and fails with NETWORK=required.
newest: $(STAMP)
	$(BIN)/python .ci/newest $(NETWORK)

# Builds, verifies and runs lira-nano for every GPU target that is installed; says by name what it skips, and why.
# EXTRA=rtx or EXTRA=tensorrt installs what the target needs first.
test-gpu: $(STAMP)
	$(if $(EXTRA),$(BIN)/python -m pip install -e '.[$(EXTRA)]')
	$(BIN)/python -m pytest -m gpu -rs --no-header tests/engine/test_gpu.py

# Target cuda without a GPU: the real onnxruntime-gpu, pycuda and cuda-bindings on a CUDA whose kernels do nothing
# (tests/hollow). In an environment of its own, without PyTorch. Needs a network.
test-hollow: $(HOLLOW)/.installed $(BUNDLE)/lira.json
	LD_LIBRARY_PATH=$(HOLLOW)/cuda PATH="$(HOLLOW)/cuda:$$PATH" \
		$(HOLLOW)/bin/python -m pytest -rs --no-header --nano $(BUNDLE) tests/hollow

$(HOLLOW)/.installed: pyproject.toml $(wildcard tests/hollow/*.sh tests/hollow/make.py tests/hollow/cuda/*) | $(STAMP)
	PYTHON='$(PYTHON)' tests/hollow/install.sh $(HOLLOW)
	@touch $@

# The adapters in examples/ with the real tools that the package index lacks. Needs a network.
test-examples: $(STAMP)
	tests/examples/tools.sh $(BIN)/python $(VENV)/tools

# export, build, calibrate, eval, bench and a download, each killed at MOMENTS random moments, then run again.
kills: $(STAMP)
	LIRA_KILLS=$(or $(MOMENTS),100) LIRA_INTERRUPTS=200 $(BIN)/python -m pytest -s --no-header tests/trust/kills

lint: $(STAMP)
	$(BIN)/python -m pip --disable-pip-version-check check
	$(BIN)/ruff check --output-format concise .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10), "lira-edge needs Python 3.10 or newer"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(TORCH) -e '.[cpu,export,dev]'
	@touch $@

clean:
	rm -rf $(VENV) bundles demo
