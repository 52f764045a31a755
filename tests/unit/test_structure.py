"""The rooms of the house: imports point downwards only, and the plug-in needs torch and nothing else."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import torchreg
from tests.cases import CONSTRAINTS, PENALTIES

ROOT = Path(torchreg.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
FLOORS = [
    {"choices", "functional", "parameters", "pieces", "products", "shards"},
    {"groups", "nn"},
    {"alike", "selectors", "schedules", "hooks"},
    {"stacked", "penalties"},
    {"constraints", "kernels"},
    {"entries", "total", "steps"},
    {"hosts", "table"},
    {"regularizer", "dropout_schedule"},
    {"activity", "compression"},
    {"optim", "diagnostics"},
    {"tuning"},
    {"__init__"},
]
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}


def room_of(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def imports_of(source: str) -> set[str]:
    """Every module that is imported anywhere in the source, with the imported names as possible submodules."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def rooms_imported(source: str) -> set[str]:
    inner = {module.split(".")[1] for module in imports_of(source) if module.startswith("torchreg.")}
    return inner & FLOOR.keys()


def test_the_reader_of_imports_sees_every_form():
    source = "import os.path\nfrom torchreg import nn\ndef f():\n    from torchreg.optim import SGDW\n"
    assert imports_of(source) == {"os.path", "torchreg.nn", "torchreg.optim.SGDW"}
    assert rooms_imported(source) == {"nn", "optim"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_imports_point_downwards_only(file):
    here = room_of(file)
    for room in rooms_imported(file.read_text()) - {here}:
        assert FLOOR[room] < FLOOR[here], f"{here} imports {room}, which is not below it"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_the_plug_in_needs_torch_and_nothing_else(file):
    roots = {module.split(".")[0] for module in imports_of(file.read_text())}
    optional = {"matplotlib"} if room_of(file) == "tuning" else set()  # a path plots itself where it can
    assert roots <= {"torch", "torchreg"} | optional | sys.stdlib_module_names


def test_without_matplotlib_nothing_but_the_plot_is_lost():
    code = "import sys; sys.modules['matplotlib'] = None; import torchreg.tuning"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent)


def test_every_public_name_exists_and_is_documented():
    for name in torchreg.__all__:
        assert getattr(torchreg, name).__doc__


def test_the_conformance_table_is_that_of_todays_cases():
    table = (ROOT.parent / "docs" / "conformance.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(.*?)` \|", table, re.MULTILINE) == [case.name for case in (*PENALTIES, *CONSTRAINTS)]
    assert ", 0 failed." in table


WAITING = {"item", "cpu", "tolist", "numpy", "synchronize"}  # methods that wait for a device


@pytest.mark.parametrize("file", sorted((ROOT / "optim").glob("*.py")), ids=lambda file: file.name)
def test_no_optimizer_waits_for_a_device(file):
    calls = [node.func for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    assert not [call.attr for call in calls if isinstance(call, ast.Attribute) and call.attr in WAITING]
    converted = [call.id for call in calls if isinstance(call, ast.Name) and call.id in ("float", "int")]
    assert not converted  # of a tensor it would wait, and of numbers there is no need
