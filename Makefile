# The commands of the README. They install what is missing into .venv first.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

# Several workers of one thread each; a worker takes what another has not come to. The slowest tests are named.
PYTEST := $(BIN)/python -m pytest --durations 10
WORKERS := --numprocesses auto --maxprocesses 4

.PHONY: install train page test test-cluster test-all mutants lint

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@echo "installing into .venv: a minute or two"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --config-settings editable_mode=compat --editable ".[test]"
	touch $@

# The main job on the embedded data set; it goes on where it was interrupted.
train: $(INSTALLED)
	$(BIN)/deepspeed launch/train.py --config configs/digits.yaml --resume auto

# The model of `make train`, to be tried in a browser.
page: $(INSTALLED)
	test -e runs/digits_8x8-biglearn_u/reports/summary.json || $(MAKE) train
	$(BIN)/python launch/page.py --model runs/digits_8x8-biglearn_u

test: $(INSTALLED)
	$(PYTEST) $(WORKERS) --dist worksteal -m "not cluster and not exhaustive"

# What needs several processes at once: ranks by every launcher, faults of one rank alone, a real SLURM, for which it
# must be root and find slurmctld, slurmd, slurm-client, munge and iproute2 installed, a real Prometheus: prometheus,
# prometheus-alertmanager and prometheus-pushgateway, and a real browser: chromium and chromium-driver. Much of it
# waits: one worker more than the cores of a small machine.
test-cluster: $(INSTALLED)
	$(PYTEST) --numprocesses 3 --dist loadfile -m "cluster and not exhaustive"

# All of them, the full products of method, mode, engine, stage and ranks included.
test-all: $(INSTALLED)
	$(PYTEST) $(WORKERS) --dist loadfile -m ""

# Faults put into the code, one at a time, each of which the tests that it names must catch.
mutants: $(INSTALLED)
	$(BIN)/python -m tests.mutants

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/mypy
