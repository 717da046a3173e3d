# The two commands of the README. Each makes the virtual environment, installs PyTorch and builds fastgan when needed.
#   make train   train a GAN on real handwritten digits and say where the pictures are
#   make test    run the tests, but for those that take long
# For developers: make check runs the long tests, and those of the CPU again in other settings; make check-full runs all that
#   there is of both; make lint, make format, make bench, make docs, make clean; make cuda-check builds with CUDA, without a GPU;
#   make coverage says which branches of the CUDA sources and of csrc/core the checks of the kernels take

PYTHON ?= python3
VENV ?= .venv
CUDA_VENV ?= .venv-cuda
BIN := $(VENV)/bin
SOURCES := pyproject.toml setup.py csrc/cuda/nvcc-flags.txt $(wildcard csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu csrc/*/*/*.h csrc/*/*/*.cpp)

# One more than cores, since some tests wait for processes that they have started.
WORKERS := $(shell cores=$$(nproc 2>/dev/null || sysctl -n hw.ncpu); echo $$((cores < 8 ? cores + 1 : 8)))

# On all cores, each process with its share of the threads; the reports end with what a selection leaves out. Bytecode
# is kept whatever the caller's setting: workers, selections and the processes that tests start load the same files.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_WAIT_POLICY=passive FASTGAN_REQUIRE_BACKENDS=cpu,simt $(BIN)/python -m pytest \
	-n $(WORKERS) --dist=worksteal
# Examples of tests/fuzz that `make check` compares with plain PyTorch.
FUZZ_EXAMPLES := 40

.PHONY: train test check check-full lint format bench docs coverage cuda-check clean

# Threads that wait spin for a short while and then sleep: 42,000 samples/s, and 15,000 beside two other busy processes,
# where threads that spin as long as is usual do 5,000. (Composed of ops, on one thread, as before: 20,000.)
train: $(VENV)/installed
	GOMP_SPINCOUNT=20000 $(BIN)/fastgan train digits

test: $(VENV)/test-tools
	$(BIN)/python tests/simt/build.py device count
	$(PYTEST) -m "not deep and not twin"
	@echo "make check runs what is left: the tests marked deep, and those of the CPU (twin, and again those of auto) on \
	other instruction sets and threads; make check-full has more of the same"

# Each setting once, several at a time; on the instructions of this machine the tests that make test left. What lies
# between a call and its kernel is no matter of instructions: on the oldest `auto` alone runs, without the tests marked
# above_kernels; on others the backend `cpu`, whose kernels are those of `auto`, with all of them. The host model of the
# CUDA kernels heeds none of the settings. pytest ends with an error where nothing is selected.
check: $(VENV)/deep-tools
	$(BIN)/python tests/simt/build.py device address $(if $(filter full,$(FASTGAN_TESTS)),thread)
	FASTGAN_FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(PYTEST) -m deep --durations=40
	FASTGAN_ISA=baseline OMP_NUM_THREADS=1 FASTGAN_TEST_THREADS=1 FASTGAN_TEST_FLUSH_DENORMAL=1 \
		FASTGAN_TEST_BACKENDS=cpu,auto $(PYTEST) -m "not deep and not twin"
	FASTGAN_ISA=avx2 OMP_NUM_THREADS=$$(($$(nproc) + 2)) FASTGAN_TEST_BACKENDS=cpu $(PYTEST) -m "not deep"
	@echo "make test runs what is left: all tests but those marked deep, on every backend, in the settings of this machine"

# Whole products of parameters and sizes that one change does not need, of make test too, and each backend of the CPU in
# each setting.
check-full: export FASTGAN_TESTS := full
check-full: $(VENV)/deep-tools
	$(MAKE) test check FUZZ_EXAMPLES=100
	FASTGAN_ISA=avx2 OMP_NUM_THREADS=$$(($$(nproc) + 2)) FASTGAN_TEST_BACKENDS=auto $(PYTEST) -m "not deep"
	FASTGAN_TEST_THREADS=1 FASTGAN_TEST_FLUSH_DENORMAL=1 FASTGAN_TEST_BACKENDS=cpu $(PYTEST) -m "not deep"

lint: $(VENV)/dev-tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.h' '*.cpp' '*.cu')

format: $(VENV)/dev-tools
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files '*.h' '*.cpp' '*.cu')

bench: $(VENV)/installed
	$(BIN)/python -m bench

# The site, in site/. Any warning is an error.
docs: $(VENV)/docs-tools
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "The pages are in site/; the first is site/index.html"

# On the host model. A branch counts once, however many instances of its template there are.
coverage: $(VENV)/dev-tools
	$(BIN)/python tests/simt/build.py coverage
	find build/simt/coverage -name '*.gcda' -delete
	FASTGAN_SIMT_ENGINE=fibers build/simt/coverage/kernel_checks
	$(BIN)/gcovr --root . --filter 'csrc/(cuda|core)/' --merge-lines --exclude-throw-branches \
		--exclude-unreachable-branches --txt-metric branch --fail-under-branch 90 build/simt/coverage

# Plain `pip install torch` is the CUDA build; in an environment of its own, because the other is that of the CPU build.
cuda-check: $(CUDA_VENV)/torch
	PYTHON=$(CUDA_VENV)/bin/python tools/cuda_check.sh

$(CUDA_VENV)/torch:
	$(PYTHON) -m venv $(CUDA_VENV)
	$(CUDA_VENV)/bin/python -m pip install --quiet --upgrade pip
	$(CUDA_VENV)/bin/python -m pip install --quiet torch numpy 'setuptools>=77' wheel ninja pybind11
	touch $@

clean:
	rm -rf $(VENV) $(CUDA_VENV) build dist site *.egg-info

# The build uses the PyTorch that will load it, hence --no-build-isolation.
$(VENV)/torch: constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "fastgan needs Python 3.10 or later, not " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch numpy 'setuptools>=77' wheel ninja pybind11
	touch $@

# Editable, so that what runs from this folder is what was built.
$(VENV)/installed: $(VENV)/torch $(SOURCES)
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[train]'
	touch $@

$(VENV)/test-tools: $(VENV)/installed Makefile
	$(BIN)/python -m pip install --quiet -c constraints.txt pytest pytest-xdist hypothesis expecttest \
		tree-sitter tree-sitter-cpp pandas
	touch $@

# What deep tests compare the scores of tables with and load exported models by, and the packages that
# fastgan.integrations accelerates.
$(VENV)/deep-tools: $(VENV)/test-tools
	$(BIN)/python -m pip install --quiet -c constraints.txt onnx onnxscript onnxruntime sdmetrics \
		'ctgan>=0.12,<0.13' 'skrl>=2.1.0,<=2.1.1'
	touch $@

$(VENV)/dev-tools: $(VENV)/torch Makefile
	$(BIN)/python -m pip install --quiet ruff mypy clang-format gcovr ninja nvidia-cuda-nvdisasm tree-sitter tree-sitter-cpp typer rich safetensors matplotlib pillow tomlkit
	touch $@

# The reference is read from the sources, which need not be built for it.
$(VENV)/docs-tools: $(VENV)/torch Makefile
	$(BIN)/python -m pip install --quiet mkdocs-material 'mkdocstrings[python]' latex2mathml
	touch $@
