# Two commands do all the set-up on a bare machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check docs learn bench soak fetch packages clean

demo: fetch
	$(BIN)/fine-tune demo

# Two workers of one thread each: threads that share a core wait for each other many times longer.
test: export OMP_NUM_THREADS = 1
test: packages check fetch
	$(BIN)/python -m pytest -n 2

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_shape.py

docs: $(VENV)/installed
	$(BIN)/python tests/test_shape.py

learn: fetch
	$(BIN)/python benchmarks/learn.py

# Beside TRL and PEFT, which are installed for this alone; takes a day on two cores (benchmarks/RESULTS.md).
bench: fetch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[bench]'
	$(BIN)/python benchmarks/train.py --search --layers 10 30 --vary prompt rows clients

# 200 kills over 40 runs of both tracks, private ones training a tiny base: on SQLite, then on PostgreSQL with
# three workers and three outages. About nine minutes on two cores.
soak: packages fetch
	PYTHONPATH=. $(BIN)/python benchmarks/soak.py

fetch: $(VENV)/installed
	$(BIN)/fine-tune fetch

# Written last, so its existence means that the environment is whole.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[alerts,local,mlx,observe,postgres,test]'
	touch $@

# A browser, an ssh server, a database and network namespaces for the tests; installed where this is root.
packages:
	.ci/packages chromium openssh-server postgresql iproute2

clean:
	rm -rf $(VENV) demo build .mypy_cache .ruff_cache .pytest_cache .hypothesis
