# Every task of the project; CI calls these and nothing else.
#   make run     set up, launch the embedded default on this CPU, ask it a question, stop
#   make test    set up, run every test, those of the real engines included
#   make check   lint, types, and the wheel outside the checkout
#   make bench   the numbers of docs/benchmarks.md, measured beside their peers
VENV ?= .venv
PYTHON ?= python3
QUESTION ?= What is the capital of France?

.PHONY: setup run test check bench clean
setup: $(VENV)/.done

$(VENV)/.done: pyproject.toml
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { apt-get update -q && apt-get install -y -q --no-install-recommends python3-venv; }
	@# Triton's stub embeds Python; Debian has the shared library in a package of its own.
	@$(PYTHON) -c 'import ctypes, sysconfig as s; v = s.get_config_var; ctypes.CDLL(f"libpython{v(\"py_version_short\")}.so.1.0") if v("LIBDIR") in ("/usr/lib", None) else None' 2>/dev/null || \
		{ apt-get update -q && apt-get install -y -q --no-install-recommends "libpython$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')"; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q --disable-pip-version-check "uv>=0.9"
	$(VENV)/bin/uv pip install -q --compile-bytecode --python $(VENV)/bin/python -e '.[dev]'
	$(VENV)/bin/python -m compileall -q launcher engines
	@touch $@

run: setup
	$(VENV)/bin/rmlaunch prompt="$(QUESTION)"

test: setup
	$(VENV)/bin/python -m pytest

check: setup
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest -q tests/test_wheel.py

bench: setup
	$(VENV)/bin/python -m benchmarks

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache
