"""The layout: imports point one way, and the plug-in needs torch and nothing else."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from textwrap import dedent

import pytest

import torchreg
from tests.cases import CONSTRAINTS, PENALTIES

REPOSITORY = Path(torchreg.__file__).parents[1]
FILES = [file for top in ("torchreg", "experiments") for file in sorted((REPOSITORY / top).rglob("*.py"))]

# Each line may import from the lines above it, and CONTRIBUTING.md shows the same tables. What stands in one line does
# not import each other.
FLOORS = {
    "torchreg": """
        functional  hooks  schedules  selection
        nn
        penalties  ensemble  diagnostics
        steps
        regularizer  optim
        tuning
        integrations
    """,
    "experiments": """
        errors
        config
        training
        running  report
        benches
        cli
    """,
}
FLOOR = {
    (top, name): height
    for top, table in FLOORS.items()
    for height, line in enumerate(table.split("\n"))
    for name in line.split()
}


def imports_of(source: str, package: str = "") -> set[str]:
    """Every module that is imported anywhere in the source, with the imported names as possible submodules."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: 1 - node.level or None] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            modules |= {f"{base}.{alias.name}" for alias in node.names}
    return modules


def name_of(file: Path) -> tuple[str, str]:
    top, *_ = parts = file.relative_to(REPOSITORY).parts
    return top, parts[1].removesuffix(".py")


def package_of(file: Path) -> str:
    return ".".join(file.relative_to(REPOSITORY).parent.parts)


def names_imported(source: str, package: str = "") -> set[tuple[str, str]]:
    imported = (module.split(".") for module in imports_of(source, package))
    return {(parts[0], parts[1]) for parts in imported if len(parts) > 1} & FLOOR.keys()


def circles_between(files: dict[str, set[str]]) -> list[str]:
    """The modules that import each other, directly or through others."""
    try:
        list(TopologicalSorter(files).static_order())
    except CycleError as error:
        return error.args[1]
    return []


def test_the_reader_of_imports_sees_every_form():
    source = "import os.path\nfrom torchreg import nn\ndef f():\n    from torchreg.optim import SGDW\n"
    assert imports_of(source) == {"os.path", "torchreg.nn", "torchreg.optim.SGDW"}
    assert names_imported(source) == {("torchreg", "nn"), ("torchreg", "optim")}
    assert imports_of("from . import x\nfrom .y import z\nfrom ..b import c", "a.b") == {"a.b.x", "a.b.y.z", "a.b.c"}
    assert names_imported("from ..config import Run", "experiments.training") == {("experiments", "config")}
    assert circles_between({"a": {"b"}, "b": {"a"}})


@pytest.mark.parametrize("top", FLOORS)
def test_the_table_names_what_there_is_and_no_more(top):
    found = {
        path.stem for path in (REPOSITORY / top).iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert found - {"__init__", "__main__"} == {name for owner, name in FLOOR if owner == top}


@pytest.mark.parametrize(("top", "most"), [("torchreg", 14), ("experiments", 9)])
def test_a_folder_can_be_taken_in_at_a_glance(top, most):
    names = {path.name for path in (REPOSITORY / top).iterdir()} - {"__pycache__", "py.typed"}
    assert len(names) <= most


def test_contributing_shows_the_same_table():
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    text = "\n".join(line.strip() for line in text.splitlines())
    for table in FLOORS.values():
        assert dedent(table).strip() in text


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(REPOSITORY).as_posix())
def test_imports_follow_the_table(file):
    here = name_of(file)
    if here[1] in ("__init__", "__main__"):
        return
    imported = names_imported(file.read_text(encoding="utf-8"), package_of(file)) - {here}
    upward = [name for name in imported if FLOOR[name] >= FLOOR[here] and name[0] == here[0]]
    assert not upward, f"{here} imports {upward}, which the table does not show above it"
    assert here[0] == "experiments" or not [name for name in imported if name[0] == "experiments"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(REPOSITORY).as_posix())
def test_the_studies_import_themselves_by_no_name_and_the_library_by_its_own(file):
    """A wheel holds the studies under another name."""
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    named = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    named |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    assert "experiments" not in {name.partition(".")[0] for name in named}
    is_relative = any(node.level for node in nodes if isinstance(node, ast.ImportFrom))
    assert name_of(file)[0] == "experiments" or not is_relative


def test_no_module_imports_one_that_imports_it():
    modules = {".".join(file.relative_to(REPOSITORY).with_suffix("").parts): file for file in FILES}
    files = {}
    for name, file in modules.items():
        if file.name != "__init__.py":  # an __init__ offers what lies in its folder
            imported = imports_of(file.read_text(encoding="utf-8"), package_of(file))
            files[name] = {
                module for module in modules for full in imported if full == module or full.rpartition(".")[0] == module
            }
    assert not circles_between(files)


@pytest.mark.parametrize("file", [file for file in FILES if file.name == "__init__.py"], ids=lambda f: f.parent.name)
def test_each_folder_opens_with_its_caption(file):
    assert ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "file",
    [file for file in FILES if name_of(file)[0] == "torchreg"],
    ids=lambda f: f.relative_to(REPOSITORY).as_posix(),
)
def test_the_plug_in_needs_torch_and_nothing_else(file):
    roots = {module.split(".")[0] for module in imports_of(file.read_text(encoding="utf-8"))}
    optional = {"matplotlib"} if name_of(file)[1] == "tuning" else set()  # a path plots itself where it can
    if name_of(file)[1] == "integrations":
        optional = {file.stem, "pytorch_lightning"} if file.stem == "lightning" else {file.stem}
    assert roots <= {"torch", "torchreg"} | optional | sys.stdlib_module_names


def test_without_matplotlib_nothing_but_the_plot_is_lost():
    code = "import sys; sys.modules['matplotlib'] = None; import torchreg.tuning"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


TRAINERS = sorted(
    file.stem
    for file in FILES
    if name_of(file)[1] == "integrations" and file.stem not in ("__init__", "attachment", "logged")
)


def test_the_plug_in_imports_no_trainer():
    code = (
        "import sys, torchreg; print(sorted(name for name in sys.modules if name.startswith('torchreg.integrations')))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("trainer", TRAINERS)
def test_an_integration_without_its_trainer_says_what_to_install(trainer):
    absent = f"import sys; sys.modules |= dict.fromkeys(['{trainer}', 'pytorch_lightning']); "
    code = f"{absent}import torchreg.integrations.{trainer}"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    error = done.stderr.strip().splitlines()[-1]
    assert re.match(rf"ImportError: torchreg\.integrations\.{trainer} needs \w+, .*: run 'pip install {trainer}", error)


def test_every_public_name_exists_and_is_documented():
    for name in torchreg.__all__:
        assert getattr(torchreg, name).__doc__


@pytest.mark.parametrize("folder", ["", ".nn", ".optim", ".tuning", ".penalties", ".selection", ".diagnostics"])
def test_completion_offers_the_public_names_and_no_files(folder):
    module = importlib.import_module(f"torchreg{folder}")
    offered = {name for name in dir(module) if not name.startswith("__")}
    files = {"diagnostics", "functional", "nn", "optim", "tuning"} if not folder else set()
    assert offered == {*module.__all__, *files}
    assert not [name for name in offered if name.startswith("_")]


@pytest.mark.parametrize("penalty", [c.penalty for c in PENALTIES] + [c.constraint for c in CONSTRAINTS], ids=repr)
def test_a_penalty_offers_what_its_users_call(penalty):
    offered = {name for name in dir(penalty) if not name.startswith("_")} - set(
        inspect.signature(type(penalty)).parameters
    )
    contract = {"value", "gradient", "prox", "optimality", "strength_max", "terms", "label"}
    for_authors = {"bind", "is_linear", "is_separable", "is_uniform", "project"}
    assert offered <= contract | for_authors


def test_the_conformance_table_is_that_of_todays_cases():
    table = (REPOSITORY / "docs" / "conformance.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(.*?)` \|", table, re.MULTILINE) == [case.name for case in (*PENALTIES, *CONSTRAINTS)]
    assert ", 0 failed." in table


WAITING = {"item", "cpu", "tolist", "numpy", "synchronize"}  # methods that wait for a device


@pytest.mark.parametrize("file", sorted((REPOSITORY / "torchreg" / "optim").glob("*.py")), ids=lambda file: file.name)
def test_no_optimizer_waits_for_a_device(file):
    calls = [node.func for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    assert not [call.attr for call in calls if isinstance(call, ast.Attribute) and call.attr in WAITING]
    converted = [call.id for call in calls if isinstance(call, ast.Name) and call.id in ("float", "int")]
    assert not converted  # of a tensor it would wait, and of numbers there is no need
