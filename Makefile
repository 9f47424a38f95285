# Every task of the project; CI calls these and nothing else.
#   make run     set up, launch the embedded default on this CPU, ask it a question, stop
#   make test    set up, run every test, those of the real engines included
#   make test-pythons   the tests without real engines, on each Python from 3.10 to 3.14 that is found on PATH or in pyenv
#   make check   lint, types, and the wheel outside the checkout; each has its own target: make lint, types, wheel
#   make faults  strike every engine with every fault, and write docs/faults.md
#   make bench   measure the numbers of docs/benchmarks.md beside their peers
VENV ?= .venv
PYTHON ?= python3
QUESTION ?= What is the capital of France?

.PHONY: setup run test test-pythons check lint types wheel faults bench clean
setup: $(VENV)/.done

# A bare Debian lacks venv, OpenMP (for llama.cpp) and Python as a shared library (for Triton's stub). The tests build a vendor's
# NPU from C, run vLLM, which needs libnuma, and look at a page in Chromium. As root they start a Docker daemon and a registry.
APT = apt-get update -q && apt-get install -y -q --no-install-recommends
LIBPYTHON = import ctypes, sys, sysconfig; name = "libpython%d.%d.so.1.0" % sys.version_info[:2]

$(VENV)/.done: pyproject.toml
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { $(APT) python3-venv; }
	@$(PYTHON) -c 'import ctypes; ctypes.CDLL("libgomp.so.1")' 2>/dev/null || { $(APT) libgomp1; }
	@$(PYTHON) -c '$(LIBPYTHON); ctypes.CDLL(name)' 2>/dev/null \
		|| $(PYTHON) -c '$(LIBPYTHON); ctypes.CDLL(sysconfig.get_config_var("LIBDIR") + "/" + name)' 2>/dev/null \
		|| { $(APT) libpython$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'); }
	$(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/python -m pip install -q --disable-pip-version-check "uv>=0.9"
	$(VENV)/bin/uv pip install -q --compile-bytecode --python $(VENV)/bin/python -e '.[dev]'
	$(VENV)/bin/python -m compileall -q launcher engines
	@touch $@

run: setup
	$(VENV)/bin/rmlaunch prompt="$(QUESTION)"

test: setup
	@echo 'int main(void) { return 0; }' | gcc -x c -include stdio.h -o /dev/null - 2>/dev/null || { $(APT) gcc libc6-dev; }
	@$(PYTHON) -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null || { $(APT) libnuma1; }
	@test "$$(id -u)" != 0 || { command -v dockerd && command -v debootstrap && command -v docker-registry && command -v ip; } \
		>/dev/null || { $(APT) docker.io iptables iproute2 debootstrap docker-registry; }
	@test "$$(id -u)" != 0 || { command -v chromedriver && command -v curl; } >/dev/null || { $(APT) chromium chromium-driver curl; }
	$(VENV)/bin/python -m pytest

# PYTHONS=--oldest takes the oldest of them alone, beside the default one.
test-pythons: setup
	$(VENV)/bin/python .ci/pythons.py $(PYTHONS) $(VENV)

check: lint types wheel

lint: setup
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .

types: setup
	$(VENV)/bin/mypy

wheel: setup
	$(VENV)/bin/python -m pytest -q tests/test_wheel.py

faults: setup
	$(VENV)/bin/python -m tests.faults.report

bench: setup
	@test "$$(id -u)" != 0 || { command -v wrk && command -v nginx; } >/dev/null || { $(APT) wrk nginx-light; }
	$(VENV)/bin/python -m benchmarks

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache
