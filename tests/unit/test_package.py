"""The package as others get it: what it says of itself, and how it stands beside its namesake."""

import re
import shutil
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import pytest

import torchreg

REPOSITORY = Path(torchreg.__file__).parents[1]
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
NAMESAKE = ("affine.py", "metrics.py", "syn.py", "utils.py")  # what the other torchreg ships beside an __init__


def text_of(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def made_folder(site: Path, *names: str) -> Path:
    for name in ("torchreg/__init__.py", "torch_regularizers-0.2.0.dist-info/METADATA", *names):
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).touch()
    return site / "torchreg"


@pytest.mark.parametrize("names", [("torchreg-0.1.3.dist-info/METADATA",), [f"torchreg/{name}" for name in NAMESAKE]])
def test_a_namesake_in_the_same_folder_gives_a_warning_of_one_line(tmp_path, names):
    with pytest.warns(UserWarning, match="^the unrelated package 'torchreg' .* 'pip uninstall torchreg', then .*$"):
        torchreg._warn_of_namesake(made_folder(tmp_path, *names))


@pytest.mark.parametrize(
    "name",
    [
        "torchreg/__pycache__/syn.cpython-311.pyc",
        "torchreg/mine.py",
        "torchreg/utils.py",
        "torchreg_plugins-1.0.dist-info/METADATA",
        "torchreg.py",
        "torch-2.14.0.dist-info/METADATA",
    ],
)
def test_files_of_the_users_own_and_other_packages_are_no_namesake(tmp_path, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torchreg._warn_of_namesake(made_folder(tmp_path, name))


def test_the_import_itself_says_so_at_the_users_line(tmp_path):
    shutil.copytree(REPOSITORY / "torchreg", tmp_path / "torchreg", ignore=shutil.ignore_patterns("__pycache__"))
    made_folder(tmp_path, "torchreg-0.1.3.dist-info/METADATA", *(f"torchreg/{name}" for name in NAMESAKE))
    (tmp_path / "script.py").write_text("import torch\nfrom torchreg import L1\nprint(L1(0.1))\n")
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout == "L1(0.1)\n"
    assert re.match(r".*script\.py:2: UserWarning: the unrelated package 'torchreg' .*\n.*\n$", done.stderr)


def on_the_index(readme: str) -> str:
    """README as the build rewrites it for a package index."""
    for one in PYPROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        readme = re.sub(one["pattern"], one["replacement"], readme)
    return readme


def test_on_a_package_index_pictures_are_their_descriptions_and_no_link_is_broken():
    readme = "See ![a curve](a.png), [a guide](docs/x.md#part), [it](https://a.b/c.md), [a\nmode][modes]: `f[0](a.b)`."
    shown = "See *a curve*, a guide, [it](https://a.b/c.md), a\nmode: `f[0](a.b)`."
    assert on_the_index(readme + "\n\n[modes]: docs/guides/modes.md\n").strip() == shown
    readme = text_of("README.md")
    assert not re.search(
        r"\]\((?!https?:|#)[\w./-]+\.\w+|<(img|source|a)\b|^\[[\w-]+\]: (?!https?:)", on_the_index(readme), re.MULTILINE
    )
    fences = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
    assert fences.findall(on_the_index(readme)) == fences.findall(readme)


def test_the_python_versions_are_those_that_are_required():
    minors = re.findall(r"Python :: 3\.(\d+)", " ".join(PYPROJECT["project"]["classifiers"]))
    assert PYPROJECT["project"]["requires-python"] == f">=3.{minors[0]}"
    assert f"3.{minors[0]}" in text_of(".github/workflows/ci.yml")
    assert f"3.{minors[-1]}" in text_of(".github/workflows/ci.yml")


def test_pre_commit_runs_the_versions_that_are_pinned():
    pins = dict(pin.split("==") for pin in PYPROJECT["project"]["optional-dependencies"]["dev"] if "==" in pin)
    assert f"rev: v{pins['ruff']}\n" in text_of(".pre-commit-config.yaml")


def test_the_changelog_keeps_its_form():
    log = text_of("CHANGELOG.md")
    assert log.startswith("# Changelog\n")
    (unreleased, *released) = re.findall(r"^## (.*)$", log, re.MULTILINE)
    assert unreleased.startswith("[Unreleased]")
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", version) for version in released)
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.*)$", log, re.MULTILINE)) <= kinds


def test_the_version_follows_the_changelog_and_the_citation_is_of_the_last_release():
    log = text_of("CHANGELOG.md")
    (coming,) = re.findall(r"^## \[Unreleased\] (\S+)$", log, re.MULTILINE)
    version, day = re.findall(r"^## \[([\d.]+)\] - (\S+)$", log, re.MULTILINE)[0]
    assert torchreg.__version__ in (f"{coming}.dev0", version)
    assert f"\nversion: {version}\n" in text_of("CITATION.cff")
    assert f"\ndate-released: {day}\n" in text_of("CITATION.cff")


MOVED = re.findall(r"^\| `(torchreg\.[\w.]+)` \| `(torchreg\.[\w.]+)`", text_of("CHANGELOG.md"), re.MULTILINE)


def test_what_the_changelog_says_has_moved_is_where_it_says():
    assert len(MOVED) > 30
    for old, new in MOVED:
        path = REPOSITORY.joinpath(*new.split("."))
        assert path.with_suffix(".py").exists() or (path / "__init__.py").exists(), new
        assert not REPOSITORY.joinpath(*old.split(".")).with_suffix(".py").exists(), old


PAGES = ["CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "docs/design.md"]


@pytest.mark.parametrize("page", PAGES)
def test_lines_can_be_read_side_by_side(page):
    lines = text_of(page).splitlines()
    assert not [line for line in lines if len(line) > 100 and not line.startswith("|")]


def test_contributing_shows_every_folder():
    tree = text_of("CONTRIBUTING.md")
    for top in ("torchreg", "experiments"):
        folders = [path.name for path in (REPOSITORY / top).iterdir() if (path / "__init__.py").exists()]
        assert [name for name in folders if f"\n  {name}/ " not in tree] == []
