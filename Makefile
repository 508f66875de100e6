# The two commands of the README: `make train` and `make test`. Both install what is missing into .venv first.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: install train test lint

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
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
