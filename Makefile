# The commands of the README. They install what is missing into .venv first.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: install train test test-cluster lint

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@echo "installing into .venv: a minute or two"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

# The main job on the embedded data set; it goes on where it was interrupted.
train: $(INSTALLED)
	$(BIN)/deepspeed launch/train.py --config configs/digits.yaml --resume auto

test: $(INSTALLED)
	$(BIN)/python -m pytest -m "not cluster"

# What needs several processes at once: ranks by every launcher, faults of one rank alone, a real SLURM, for which it
# must be root and find slurmctld, slurmd, slurm-client, munge and iproute2 installed, and a real Prometheus:
# prometheus, prometheus-alertmanager and prometheus-pushgateway.
test-cluster: $(INSTALLED)
	$(BIN)/python -m pytest -m cluster

lint: $(INSTALLED)
	$(BIN)/ruff check .
