"""Each public name has one entry in the reference; each penalty, constraint, layer and coupling has pictures."""

import importlib
import inspect
import re
from importlib.util import find_spec
from typing import get_args

import pytest
from torch import nn

import torchreg
from tests.docs.pages import ROOT
from torchreg import Constraint, Penalty
from torchreg.optim.decoupled import Coupling

MODULES = (torchreg, torchreg.nn, torchreg.optim, torchreg.tuning, torchreg.diagnostics)
REFERENCE = ROOT / "docs" / "reference"
LINE = re.compile(r"^(?:\.\. (currentmodule|auto\w+):: (\S+)|   (\w[\w.]*))$", re.MULTILINE)


def parts(page):
    """The names in each table of a page, and the names of the entries under it."""
    for part in re.split(r"^## ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        module, listed, entries = "", [], []
        for directive, argument, row in LINE.findall(part):
            if directive == "currentmodule":
                module = argument
            elif directive.startswith("auto") and directive != "autosummary":
                entries.append(full(argument, module))
            elif row:
                listed.append(full(row, module))
        yield listed, entries


def full(name, module):
    return name if name.startswith("torchreg.") else f"{module}.{name}"


def what(name):
    """The object of that full name."""
    found = torchreg
    for part in name.split(".")[1:]:
        found = getattr(found, part, None) or importlib.import_module(f"{found.__name__}.{part}")
    return found


def is_here(name):
    """Whether the module of an integration can be imported, because its trainer is installed."""
    trainer = re.match(r"torchreg\.integrations\.(\w+)\.", name)
    return not trainer or find_spec(trainer[1]) is not None


ENTRIES = [
    name for page in sorted(REFERENCE.glob("*.md")) for _, entries in parts(page) for name in entries if is_here(name)
]
SCRIPTS = {
    folder: "".join(
        path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs" / "gallery").glob(f"{folder}/*.py"))
    )
    for folder in ("penalties", "constraints", "dropout", "couplings")
}


def classes(module, base):
    """The names of a module's public classes of that kind which can be made."""
    public = {name: getattr(module, name) for name in module.__all__}
    return [
        name
        for name, cls in public.items()
        if inspect.isclass(cls) and issubclass(cls, base) and not inspect.isabstract(cls)
    ]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_each_public_name_has_an_entry(module):
    described = {id(what(name)) for name in ENTRIES}
    assert [name for name in module.__all__ if id(getattr(module, name)) not in described] == []


def test_no_name_has_two_entries():
    described = [what(name) for name in ENTRIES]
    assert [
        name for name, thing in zip(ENTRIES, described, strict=True) if sum(thing is one for one in described) > 1
    ] == []


@pytest.mark.parametrize("page", sorted(REFERENCE.glob("*.md")), ids=lambda page: page.stem)
def test_a_table_lists_the_entries_under_it(page):
    for listed, entries in parts(page):
        assert listed == entries


def test_the_index_shows_every_page():
    index = (REFERENCE / "index.md").read_text(encoding="utf-8")
    pages = sorted(page.stem for page in REFERENCE.glob("*.md") if page.stem != "index")
    assert sorted(re.findall(r"^```\{names\} (\w+)$", index, re.MULTILINE)) == pages
    assert sorted(re.findall(r"^## \[.+\]\((\w+)\.md\)$", index, re.MULTILINE)) == pages


def test_each_penalty_has_pictures():
    names = [name for name in classes(torchreg, Penalty) if not issubclass(getattr(torchreg, name), Constraint)]
    assert len(names) >= 22
    assert [name for name in names if not is_pictured(f"torchreg.{name}", "penalties")] == []


def test_each_constraint_has_pictures():
    names = classes(torchreg, Constraint)
    assert len(names) >= 7
    assert [name for name in names if not is_pictured(f"torchreg.{name}", "constraints")] == []


def test_each_layer_has_pictures():
    names = [name for name in classes(torchreg.nn, nn.Module) if name != "Gated"]  # what three of the layers share
    assert len(names) >= 18
    assert [name for name in names if not is_pictured(f"torchreg.nn.{name}", "dropout")] == []


@pytest.mark.parametrize("coupling", get_args(Coupling))
def test_each_coupling_has_pictures(coupling):
    assert f'"{coupling}"' in SCRIPTS["couplings"]


def is_pictured(name, folder):
    return f":class:`{name}`" in SCRIPTS[folder]
