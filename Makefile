# Every command first installs what it needs into .venv. Without make: docs/start/install.md.
PYTHON ?= python3
PYTEST = .venv/bin/python -m pytest --numprocesses auto --dist loadfile

.PHONY: help demo test test-rest test-all mutants fuzz lint docs clean

help:  ## lists these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/demo  ## runs the quickstart study, or continues it, and says where its report is
	.venv/bin/python -m experiments run configs/quickstart.toml --resume

test: .venv/dev  ## runs one representative of each kind of test
	$(PYTEST) --representatives

test-rest: .venv/dev  ## runs the tests that `make test` leaves out
	$(PYTEST) --rest

test-all: .venv/dev  ## runs every test
	$(PYTEST)

mutants: .venv/dev  ## breaks one line after another and writes which tests see it to docs/mutants.md
	.venv/bin/python -m tests.mutants

fuzz: .venv/dev  ## tries 100,000 mutated configurations and 2,000 corrupted records: half an hour
	.venv/bin/python -m tests.fuzz

lint: .venv/dev  ## checks style and types
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m mypy

# Warnings are errors, and so is a page that would load anything from the network.
docs: .venv/docs  ## builds the documentation site
	.venv/bin/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "The documentation is $(CURDIR)/docs/_build/html/index.html"

clean:  ## removes .venv and the built documentation
	rm -rf .venv docs/_build docs/gallery_built

# A stamp is made last: what was interrupted is done again. A torch that $(PYTHON) already has is used; .venv is shown
# where it is, and pip is held to its version.
.venv/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || \
		{ echo 'error: torchreg needs Python 3.11 or later, $(PYTHON) is not: say which, as in PYTHON=python3.12' >&2; exit 2; }
	@$(PYTHON) -m venv .venv > /dev/null 2>&1 || \
		{ echo 'error: $(PYTHON) -m venv fails: on Debian or Ubuntu, apt install python3-venv' >&2; exit 2; }
	@$(PYTHON) -c "$$FIND_TORCH" > .venv/constraints.txt
	@touch $@

.venv/demo: .venv/python pyproject.toml
	$(call install,experiments)
	@touch $@

.venv/dev: .venv/python pyproject.toml
	$(call install,dev$(,)clients)
	@touch $@ .venv/demo

.venv/docs: .venv/python pyproject.toml
	$(call install,docs)
	@touch $@

, = ,
define install
	@echo 'Installing torchreg[$(1)] into .venv: this takes minutes the first time (log: .venv/pip.log)'
	@.venv/bin/python -m pip install --disable-pip-version-check -c .venv/constraints.txt -e '.[$(1)]' \
		> .venv/pip.log 2>&1 || { sh -c "$$EXPLAIN_PIP" >&2; exit 2; }
endef

define EXPLAIN_PIP
reason=$$(sed -n 's/^ *ERROR: //p' .venv/pip.log | tail -n 1)
case "$${reason:=$$(tail -n 1 .venv/pip.log)}" in
*'No matching distribution'* | *onnection* | *'timed out'*) hint=': is there a network, and a package index at PIP_INDEX_URL?' ;;
esac
echo "error: pip: $$reason$$hint (log: .venv/pip.log)"
endef
export EXPLAIN_PIP

define FIND_TORCH
import pathlib, sysconfig
try:
    import torch
except ImportError:
    pass  # pip installs one
else:
    number = torch.__version__.split("+")[0]
    if tuple(map(int, number.split(".")[:2])) >= (2, 11):
        packages = pathlib.Path(sysconfig.get_path("purelib", "venv", {"base": ".venv"}))
        (packages / "torch-of-parent.pth").write_text(str(pathlib.Path(torch.__file__).parents[1]) + "\n")
        print(f"torch=={number}")
endef
export FIND_TORCH
