"""What README and the documentation show is true: Python runs and prints what is shown, studies and commands exist."""

import re
import shlex
import sys
import tomllib
from collections.abc import Callable
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from experiments import cli, config
from experiments.benches import command as benches
from experiments.benches.timing import Clock
from experiments.config.overrides import override
from experiments.running import rehearsal, search
from tests.docs.pages import PAGES, ROOT, Block, blocks, name_of

HIDDEN = {"code", "code-block", "code-cell", "doctest", "parsed-literal", "prompt", "sourcecode", "testcode"}
BUILT = "gallery_built"  # what the build of the documentation writes: it tells of what is not there
OTHERS = ("cd", "git", "venv")  # commands that a page may name; also .venv/bin/activate and the like
PLAIN = """
name = "plain"
data = { name = "digits", train_size = 100 }
model = { name = "mlp", hidden = [8] }
optimizer = { name = "AdamW", lr = 1e-3 }
train = { epochs = 1, batch_size = 50 }
arms = [{ name = "none" }]
"""
TARGETS = re.findall(r"^\.PHONY:(.*)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[0].split()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NUMBER = r"-?\d+\.\d+(?:e[+-]?\d+)?"  # one that may round otherwise on another machine


class Page:
    """One page as a reader follows it, from the first block to the last."""

    def __init__(self, module: ModuleType, printed: Callable[[], str]) -> None:
        self.module, self.printed = module, printed
        self.output, self.output_line = "", 0  # what the last Python block printed, and where it would be shown
        self.study = tomllib.loads(PLAIN)  # the last whole one
        self.files: dict[str, dict[str, Any]] = {}  # studies that the page says to save, by file

    def follow(self, block: Block) -> None:
        if block.language.startswith("{"):
            self.directive(block)
        elif block.language == "text":
            if block.line == self.output_line:
                assert_shown(block.text, self.output, block.place)
        else:
            check = {"python": self.python, "toml": self.toml, "sh": self.sh, "bat": self.sh, "diff": self.diff}
            assert block.language in check, f"{block.place}: unknown or missing language {block.language!r}"
            check[block.language](block)

    def python(self, block: Block) -> None:
        lines = "\n" * block.line + block.text  # so that an error names the line of the page
        exec(compile(lines, str(block.page), "exec"), vars(self.module))
        self.output, self.output_line = self.printed(), block.end + 2

    def toml(self, block: Block) -> None:
        """A whole study, or a fragment, which is laid on the page's last whole one or on the file that it extends."""
        tree = tomllib.loads(block.text)
        if base := tree.pop("extends", None):
            assert base in self.files, f"{block.place}: no page says to save {base}"
            tree = config.files.merged(self.files[base], tree)
        whole = {"data", "model", "optimizer", "train", "arms"} <= tree.keys()
        if not whole:
            tree = laid_on(self.study, tree)
        elif base is None:
            self.study = tree
        if found := re.match(r"# (\S+\.toml)$", block.text.splitlines()[0]):
            assert whole, f"{block.place}: a file must hold a whole study"
            self.files[found[1]] = tree
        resolved = config.resolve(deepcopy(tree))
        data = resolved.runs[0].data
        if data.name == "digits" or data.class_ or (data.path and Path(data.path).exists()):  # without a download
            rehearsal.check(resolved)
        if resolved.sweep is not None:
            search.check(resolved.sweep)

    def sh(self, block: Block) -> None:
        for line in block.text.replace("\\\n", " ").splitlines():
            for words in commands(line):
                self.command(words, block)

    def command(self, words: list[str], block: Block) -> None:
        if words[0] == "torchrun":  # its options, then those of python
            words = ["python", *words[words.index("-m") :]]
        program, arguments = words[0], words[1:]
        if program in ("python", "python3", "py") and arguments[:1] == ["-m"]:
            program, arguments = arguments[1], arguments[2:]
            known = program == "pip" or find_spec(program)  # setuptools warns where one asks for pip
            assert known, f"{block.place}: no module {program}"
        checks = {
            "experiments": self.experiments,
            "torchreg": self.experiments,
            "make": self.make,
            "pip": self.pip,
            "pytest": self.pytest,
        }
        if program in checks:
            checks[program](arguments, block)
        else:
            assert program in OTHERS or "." in program, f"{block.place}: unknown command {shlex.join(words)}"

    def make(self, arguments: list[str], block: Block) -> None:
        targets = {word for word in arguments if "=" not in word}
        assert targets, f"{block.place}: no target"
        assert targets <= set(TARGETS), f"{block.place}: {targets} are not all of {TARGETS}"

    def pytest(self, arguments: list[str], block: Block) -> None:
        for word in arguments:
            assert "/" not in word or (ROOT / word).exists(), f"{block.place}: no {word}"

    def experiments(self, arguments: list[str], block: Block) -> None:
        """Parses the command line, and loads the study it names, with its overrides."""
        known: dict[str, Any] = vars(typer.main.get_command(cli.app))["commands"]
        name, *rest = arguments[: arguments.index(">")] if ">" in arguments else arguments  # into a file
        assert name in known, f"{block.place}: unknown command {name}"
        parsed = known[name].make_context(name, rest).params
        if name == "bench":
            names = parsed["names"] or ["compare"]
            assert names[0] == "compare" or benches.chosen(names, Clock(parsed["device"], parsed["quick"])), block.place
        if "path" not in parsed:
            return
        path = str(parsed["path"])
        if path in self.files:
            tree = deepcopy(self.files[path])
            for text in parsed["overrides"]:
                override(tree, text)
            loaded = config.resolve(tree)
        else:
            loaded = config.load(ROOT / path, parsed["overrides"])
        is_other = name in ("run", "sweep") and (loaded.sweep is not None) != (name == "sweep")
        assert not is_other, f"{block.place}: run and sweep are for other files"

    def pip(self, arguments: list[str], block: Block) -> None:
        for word in arguments:
            extras = re.fullmatch(r"(?:\.|torch-regularizers)\[(.+)\]", word)
            for extra in extras[1].split(",") if extras else ():
                assert extra in PROJECT["optional-dependencies"], f"{block.place}: unknown extra {extra}"

    def diff(self, block: Block) -> None:
        """A recipe: the code before and after the marked lines; what it does is for tests/clients/test_recipes.py."""
        lines = [line or " " for line in block.text.splitlines()]
        assert {line[0] for line in lines} == {" ", "+"}, f"{block.place}: some lines must be marked +, none otherwise"
        for marks in (" ", " +"):
            compile("\n".join(line[1:] for line in lines if line[0] in marks), str(block.page), "exec")

    def directive(self, block: Block) -> None:
        name, _, argument = block.language[1:].partition("}")
        assert name not in HIDDEN, f"{block.place}: code in a directive {name} is not tested: use a plain fence"
        if name in ("figure", "image", "literalinclude") and BUILT not in argument:
            assert (block.page.parent / argument.strip()).is_file(), f"{block.place}: no file {argument.strip()}"


def commands(line: str) -> list[list[str]]:
    """The commands of a line: what && and ; part, without comments and variables set before them."""
    lexer = shlex.shlex(line.replace("\\", "\\\\"), posix=True, punctuation_chars="&;")
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("&;"):
            found.append([])
        elif found[-1] or not re.match(r"[A-Z_]+=", word):
            found[-1].append(word)
    return [words for words in found if words]


def laid_on(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """A study with a fragment of one laid on it; arms are added."""
    tree = config.files.merged(base, over)
    if "arms" in over:
        names = [arm["name"] for arm in over["arms"]]
        tree["arms"] = [arm for arm in base["arms"] if arm["name"] not in names] + over["arms"]
    return tree


def assert_shown(shown: str, printed: str, place: str) -> None:
    """What is printed is what the page shows, up to rounding and spaces."""
    assert re.sub(NUMBER, "#", printed).split() == re.sub(NUMBER, "#", shown).split(), place
    ours, theirs = ([float(number) for number in re.findall(NUMBER, text)] for text in (shown, printed))
    assert theirs == pytest.approx(ours, rel=0.1, abs=1e-3), place


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_is_true(page, tmp_path, monkeypatch, capsys):
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # where dataclasses and pickles look for it
    monkeypatch.syspath_prepend(page.parent / "examples")  # as if the reader had saved them
    monkeypatch.chdir(tmp_path)
    reader = Page(module, lambda: capsys.readouterr().out)
    for block in blocks(page):
        reader.follow(block)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_files_that_a_page_links_to_exist(page):
    links = re.findall(r"(?:\]\(|^\[[^\]]+\]: )([^\s)#]+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    inner = [link for link in links if "://" not in link and BUILT not in link]
    assert [link for link in inner if not (page.parent / link).exists()] == []
