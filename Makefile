# Each command makes all its own set-up in .venv: `make demo`, `make test`, `make docs`.
PYTHON ?= python3
PIP = .venv/bin/python -m pip install -q --disable-pip-version-check -c .venv/constraints.txt

.PHONY: demo test lint docs clean

demo: .venv/demo
	.venv/bin/python -m experiments run configs/quickstart.toml --resume

test: .venv/dev
	.venv/bin/python -m pytest

lint: .venv/dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

# Warnings are errors, and so is a page that would load anything from the network.
docs: .venv/docs
	.venv/bin/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "The documentation lies in $(CURDIR)/docs/_build/html/index.html"

clean:
	rm -rf .venv docs/_build docs/gallery_built

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

.venv/docs: .venv/python pyproject.toml
	$(PIP) -e '.[docs]'
	touch $@

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
