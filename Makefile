# make demo: set up, build, quantize the embedded checkpoint.  make test: set up, build, run the tests.
# make bench: speed and memory beside transformers and llama.cpp, an hour and more; once before that, half an hour more
# to compile llama.cpp into .venv-bench. BENCH passes options on: make bench BENCH=--quick
# make cuda-check: compile the CUDA kernels with nvcc, no GPU needed; registers and spills in build/cuda-check.log.
# CUDA kernels are built where nvcc and a GPU are; QUAMBA_CUDA=1 make build builds them without one, 0 leaves them out.
# make sanitize: the CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer: tests of ops, random bad calls.
# make docs: the site of docs/ in build/docs; a warning or a dead link is an error.
# make lint, make format, make clean: what they say. PYTHON chooses the interpreter, JOBS the parallel compilations and tests.

PYTHON ?= python3
JOBS ?= 2
VENV := .venv
VENV_BENCH := .venv-bench
RUN := $(VENV)/bin/python
RUN_BENCH := $(VENV_BENCH)/bin/python

.PHONY: demo test docs bench cuda-check sanitize lint format build clean

demo: build
	$(RUN) main.py mamba-tiny --quantize --use_outlier_aware

test: $(VENV)/built-for-tests
	HF_HUB_OFFLINE=1 $(RUN) -m pytest -n $(JOBS)

# not --quiet: warnings that are not shown are not counted either
docs: build $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

bench: build $(VENV_BENCH)/installed
	$(RUN) -m benchmarks.speed $(BENCH)

cuda-check: $(VENV)/installed
	@MAX_JOBS=$(JOBS) $(RUN) -m tools.build_cuda --log build/cuda-check.log

sanitize: $(VENV)/installed
	@MAX_JOBS=$(JOBS) $(RUN) -m tools.sanitize --jobs $(JOBS)

lint: $(VENV)/installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

format: $(VENV)/installed
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

build: $(VENV)/built

$(VENV)/installed: requirements.txt requirements-dev.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.11 ..."; exit 1; }
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@echo "installing pinned requirements into $(VENV)"
	@# not compiled to bytecode: that takes as long as the rest of the installation, for modules that nothing imports
	@$(RUN) -m pip install --quiet --disable-pip-version-check --no-compile -r requirements-dev.txt -c constraints.txt
	@touch $@

$(VENV)/installed-docs: $(VENV)/installed requirements-docs.txt
	@$(RUN) -m pip install --quiet --disable-pip-version-check --no-compile -r requirements-docs.txt -c constraints.txt
	@touch $@

# builds with the environment $(1) and the options $(2), and says $(3)
define build_kernels
	@c++ --version > /dev/null 2>&1 || { echo "a C++ compiler is needed: GCC 11 or newer"; exit 1; }
	@echo "building the kernels ($(3); the compiler's output is in $(VENV)/build.log)"
	@$(1) MAX_JOBS=$(JOBS) $(RUN) setup.py --quiet build_ext --inplace $(2) > $(VENV)/build.log 2>&1 || \
		{ tail -n 40 $(VENV)/build.log; echo "the build failed"; exit 1; }
endef

SOURCES := setup.py tools/build_cuda.py $(wildcard csrc/*/*)

# asked for, and no earlier build made them
ifeq ($(QUAMBA_CUDA)$(wildcard quamba/_C_cuda*.so),1)
.PHONY: $(VENV)/built $(VENV)/built-for-tests
endif

$(VENV)/built: $(VENV)/installed $(SOURCES)
	$(call build_kernels,,,a minute)
	@touch $@

# the tests of CUDA kernels run an emulation of them, compiled beside the rest
$(VENV)/built-for-tests: $(VENV)/installed $(SOURCES)
	$(call build_kernels,QUAMBA_EMULATED=1,--parallel $(JOBS),a minute or two)
	@touch $(VENV)/built $@

# no cache: a wheel from there may have been compiled for another processor, or without the header
$(VENV_BENCH)/installed: requirements-bench.txt benchmarks/speed/amx_tile_config.h
	@c++ --version > /dev/null 2>&1 || { echo "a C++ compiler is needed: GCC 11 or newer"; exit 1; }
	@test -x $(RUN_BENCH) || $(PYTHON) -m venv $(VENV_BENCH)
	@echo "installing llama.cpp into $(VENV_BENCH): compiled here, half an hour (output in $(VENV_BENCH)/build.log)"
	@CXXFLAGS="-include $(CURDIR)/benchmarks/speed/amx_tile_config.h" CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) \
		$(RUN_BENCH) -m pip install --verbose --disable-pip-version-check --no-cache-dir \
		-r requirements-bench.txt > $(VENV_BENCH)/build.log 2>&1 || \
		{ tail -n 40 $(VENV_BENCH)/build.log; echo "the installation failed"; exit 1; }
	@touch $@

clean:
	rm -rf build quamba/*.so $(VENV)/built $(VENV)/built-for-tests
