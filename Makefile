# Everything runs in .venv; a second call starts at once.  On a machine whose registry serves CUDA
# builds of torch, keep to the CPU build with
#   make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin
STAMP := .venv/.installed
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt $(PIP_ARGS)

.PHONY: help install demo test check format bench tools clean
help:
	@echo "make demo    train spiking units beside an LSTM on real digits, then show where the page is"
	@echo "make test    the test suite (no GPU, no network)"
	@echo "make check   formatting, lint, types"
	@echo "make bench   speed, side by side with torch and, where installed, other libraries"
	@echo "make tools   simulators and synthesis of Verilog: Icarus, Verilator, Yosys (apt, root)"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt CMakeLists.txt $(wildcard native/*) $(wildcard spikebridge/*/__init__.py)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "spikebridge needs Python 3.11 or newer; set PYTHON=python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Setting up .venv (once; the torch download is the long part) ..."
	@$(PIP) scikit-build-core nanobind cmake ninja
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) --no-build-isolation -e '.[app,dev]'
	@touch $(STAMP)

demo: $(STAMP)
	@$(BIN)/spikebridge demo

# A process for each core, and one thread in each: more threads than cores wait for one another.
test: $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist loadfile

check: $(STAMP)
	@$(BIN)/ruff format --check --diff .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: $(STAMP)
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(STAMP)
	@$(BIN)/python benchmarks/speed.py

# The tests of the Verilog skip, and say so, where these are missing.
TOOLS := iverilog verilator yosys
tools:
	@command -v apt-get >/dev/null || { echo "there is no apt-get here; install $(TOOLS) with your package manager"; exit 1; }
	@test "$$(id -u)" = 0 || { echo "run it as root: sudo make tools"; exit 1; }
	@apt-get install -y -q $(TOOLS) || { apt-get update -q && apt-get install -y -q $(TOOLS); }

clean:
	rm -rf .venv build
