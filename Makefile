# Two commands, each with all its own set-up in .venv: `make demo` and `make test`.
# `make test` runs some of the tests (tests/representatives.py), `make test-rest` the others, `make test-all` both.
PYTHON ?= python3
PYTEST = .venv/bin/python -m pytest --numprocesses auto --dist loadfile
PIP = .venv/bin/python -m pip install -q --disable-pip-version-check -c .venv/constraints.txt

.PHONY: demo test test-rest test-all mutants lint clean

demo: .venv/demo
	.venv/bin/python -m experiments run configs/quickstart.toml --resume

test: .venv/dev
	$(PYTEST) --representatives

test-rest: .venv/dev
	$(PYTEST) --rest

test-all: .venv/dev
	$(PYTEST)

# Breaks one line after another and writes docs/mutants.md: which tests see it.
mutants: .venv/dev
	.venv/bin/python -m tests.mutants

lint: .venv/dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

clean:
	rm -rf .venv

# A torch that $(PYTHON) already has is used: the environment is shown where it lies, and pip is held to its version.
.venv/python:
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11)' || { echo 'torchreg needs Python 3.11 or later'; exit 2; }
	$(PYTHON) -m venv .venv
	$(PYTHON) -c "$$FIND_TORCH" > .venv/constraints.txt
	touch $@

.venv/demo: .venv/python pyproject.toml
	$(PIP) -e '.[experiments]'
	touch $@

.venv/dev: .venv/python pyproject.toml
	$(PIP) -e '.[dev,clients]'
	touch $@ .venv/demo

define FIND_TORCH
import glob, pathlib
try:
    import torch
except ImportError:
    pass  # pip installs one
else:
    number = torch.__version__.split("+")[0]
    if tuple(map(int, number.split(".")[:2])) >= (2, 11):
        (packages,) = map(pathlib.Path, glob.glob(".venv/lib/python*/site-packages"))
        (packages / "torch-of-parent.pth").write_text(str(pathlib.Path(torch.__file__).parents[1]) + "\n")
        print(f"torch=={number}")
endef
export FIND_TORCH
