# Two commands, each with all its own set-up in .venv: `make demo` and `make test`.
PYTHON ?= python3

.PHONY: demo test lint clean

demo: .venv/demo
	.venv/bin/python -m experiments run configs/quickstart.toml --resume

test: .venv/dev
	.venv/bin/python -m pytest

lint: .venv/dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

clean:
	rm -rf .venv

# A torch that $(PYTHON) already has is used: the environment sees it, and it is kept at its version.
.venv/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "torchreg needs Python 3.11 or later")'
	if $(PYTHON) -c 'import torch' 2>/dev/null; then \
	    $(PYTHON) -m venv --system-site-packages .venv; \
	    $(PYTHON) -c 'import torch; print("torch==" + torch.__version__.split("+")[0])' > .venv/constraints.txt; \
	else \
	    $(PYTHON) -m venv .venv; \
	    : > .venv/constraints.txt; \
	fi
	touch $@

.venv/demo: .venv/python pyproject.toml
	.venv/bin/python -m pip install -q --disable-pip-version-check -c .venv/constraints.txt -e '.[experiments]'
	touch $@

.venv/dev: .venv/python pyproject.toml
	.venv/bin/python -m pip install -q --disable-pip-version-check -c .venv/constraints.txt -e '.[dev]'
	touch $@ .venv/demo
