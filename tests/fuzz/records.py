"""Records whose files were damaged, exchanged or altered, read as the command line does to report or to go on."""

import io
import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

from experiments import cli
from experiments.config import Study, resolve
from experiments.report import summarize
from experiments.report.summary import Summary
from experiments.running.study import run_study
from experiments.running.sweep import run_sweep
from experiments.training.record import Record
from tests.fuzz.command import Outcome, is_error, outcome_of
from tests.fuzz.configurations import toml

TREE: dict[str, Any] = {
    "name": "fuzz",
    "seeds": [0, 1],
    "data": {"name": "digits", "train_size": 20, "valid_size": 20},
    "model": {"name": "mlp", "hidden": [3]},
    "optimizer": {"name": "SGD", "lr": 0.1, "momentum": 0.9},
    "train": {"epochs": 2, "batch_size": 10, "checkpoint_seconds": 0.0, "stack": True},
    "arms": [{"name": "none"}, {"name": "L1", "regularizers": [{"penalty": "L1", "mode": "prox", "strength": 0.1}]}],
}
SPACE = {"space": {"optimizer.lr": [0.1, 0.2]}, "arms": ["L1"], "pruner": {"name": "MedianPruner"}}
WRONG = [None, True, -1, 0, 2, 1.5, 1e300, float("nan"), float("-inf"), 10**30, "", "x", "done", [], [1], {}, {"a": 1}]
CPU = torch.device("cpu")
Files = dict[str, bytes]


class Case(NamedTuple):
    """A folder of records, the command that reads it, and what it tells of the whole ones."""

    name: str
    files: Files
    is_sealed: bool
    command: Callable[[Path], None]
    tells: Callable[[Path, Outcome], Any]
    expected: Any


class CutError(BaseException):
    """The process is killed."""


def cases(folder: Path) -> list[Case]:
    """A finished study and a finished search, one that was killed, and the same as an earlier version wrote them."""
    study, search = resolve(TREE), resolve({**TREE, "sweep": SPACE})
    path = _study_at(folder / "study.toml", TREE)
    done, cut, searched = (folder / name for name in ("done", "cut", "searched"))
    with redirect_stdout(io.StringIO()):
        run_study(study, done, CPU)
        run_sweep(search, searched, CPU)
        _cut(study, cut)

    def report(where: Path) -> None:
        cli.render(where)

    def resume(where: Path) -> None:
        cli.run(path, [], out=where, device="cpu", resume=True)

    def table(_: Path, outcome: Outcome) -> str:
        return outcome.out.partition("\n\nReport: ")[0]

    def weights(where: Path, _: Outcome) -> dict[str, str]:
        found = {path: json.loads(path.read_text()) for path in sorted(where.glob("runs/**/result.json"))}
        return {str(path.relative_to(where)): result["sha256"] for path, result in found.items()}

    made: list[Case] = []
    for name, source, command, tells in (
        ("report", done, report, table),
        ("report of a search", searched, report, table),
        ("resume", cut, resume, weights),
    ):
        files = {
            str(path.relative_to(source)): path.read_bytes() for path in sorted(source.rglob("*")) if path.is_file()
        }
        found = outcome_of(partial(command, source))
        assert found.code == 0, found
        expected = tells(source, found)
        made.append(Case(name, files, True, command, tells, expected))
        made.append(Case(f"{name}, of an earlier version", _unsealed(files), False, command, tells, expected))
    return made


def _cut(study: Study, folder: Path) -> None:
    """The study, whose last run is killed after its first epoch."""
    append = Record.append

    def die(self: Record, row: dict[str, Any]) -> None:
        if row["epoch"] == 2 and self.folder.parent.name == "L1" and self.folder.name == "seed1":
            raise CutError
        append(self, row)

    with patch.object(Record, "append", die):
        try:
            run_study(study, folder, CPU)
        except CutError:
            return
    raise AssertionError("the study was not cut")


def _unsealed(files: Files) -> Files:
    """The files without checksums."""
    plain = {}
    for name, content in files.items():
        if name.endswith(".json") and isinstance(tree := json.loads(content), dict):
            content = json.dumps(
                {key: value for key, value in tree.items() if key not in ("checksum", "files")}
            ).encode()
        elif name.endswith("trials.jsonl"):
            events = [json.loads(line) for line in content.splitlines()]
            content = b"".join(
                json.dumps({**event, "checksum": ""}).replace(', "checksum": ""', "").encode() + b"\n"
                for event in events
            )
        elif name.endswith(".pt"):
            content = content.rpartition(b"\nsha256 ")[0]
        plain[name] = content
    return plain


def damage(files: Files, draw: random.Random) -> tuple[str, dict[str, bytes | None]]:
    """What is done to the files, in words, and the files that differ then; None for one that is missing."""
    name = draw.choice([name for name in files if files[name]])
    content = files[name]
    kind = draw.choice(
        ["bit", "bit", "bit", "cut", "gone", "junk", "value", "value", "value", "line", "exchange", "runs"]
    )
    if kind == "bit":
        place, bit = draw.randrange(len(content)), draw.randrange(8)
        changed = content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]
        return f"bit {bit} of byte {place} of {name} flipped", {name: changed}
    if kind == "cut":
        place = draw.randrange(len(content))
        return f"{name} cut to {place} bytes", {name: content[:place]}
    if kind == "gone" and not name.endswith("result.json"):  # without it a run is not finished
        return f"{name} removed", {name: None}
    if kind == "junk":
        return f"{name} is junk", {
            name: draw.choice([b"", b"\0" * 50, draw.randbytes(50), b"[" * 100_000, b"null", b"{}", b"[]", b"1" * 5000])
        }
    if kind == "line" and name.endswith(".jsonl"):
        lines = content.splitlines(keepends=True)
        places = draw.randrange(len(lines)), draw.randrange(len(lines))
        how = draw.choice(["removed", "doubled", "moved"])
        if how == "removed":
            del lines[places[0]]
        elif how == "doubled":
            lines.insert(places[1], lines[places[0]])
        else:
            lines[places[0]], lines[places[1]] = lines[places[1]], lines[places[0]]
        return f"line {places} of {name} {how}", {name: b"".join(lines)}
    if kind == "exchange":
        alike = [
            other for other in files if other != name and (Path(other).name == Path(name).name or draw.random() < 0.1)
        ]
        other = draw.choice(alike or list(files))
        return f"{name} and {other} exchanged", {name: files[other], other: content}
    if kind == "runs":
        runs = sorted({str(Path(other).parent) for other in files if other.endswith("config.json")})
        one, two = draw.sample(runs, 2)
        moved = {one: two, two: one}
        taken = {
            str(Path(moved[str(Path(f).parent)], Path(f).name)): c
            for f, c in files.items()
            if str(Path(f).parent) in moved
        }
        lost = {f: None for f in files if str(Path(f).parent) in moved}
        return f"{one} and {two} exchanged", {**lost, **taken}
    return _altered(name, content, draw)


def _altered(name: str, content: bytes, draw: random.Random) -> tuple[str, dict[str, bytes | None]]:
    """A value in a file removed or replaced by a wrong one."""
    if name.endswith(".pt"):
        state = torch.load(io.BytesIO(content), weights_only=True)
        how = _alter(state, draw)
        torch.save(state, buffer := io.BytesIO())
        return f"{how} in {name}", {name: buffer.getvalue()}
    if name.endswith(".jsonl"):
        lines = content.splitlines(keepends=True)
        place = draw.randrange(len(lines))
        tree = json.loads(lines[place])
        how = _alter(tree, draw)
        lines[place] = json.dumps(tree).encode() + b"\n"
        return f"{how} in line {place} of {name}", {name: b"".join(lines)}
    if name.endswith(".json"):
        tree = json.loads(content)
        how = _alter(tree, draw)
        return f"{how} in {name}", {name: json.dumps(tree, indent=2).encode()}
    return f"{name} emptied", {name: b""}


def _alter(tree: Any, draw: random.Random) -> str:
    nodes = [(path, node) for path, node in _nodes(tree) if node]
    path, node = draw.choice(nodes)
    place = draw.choice(list(node) if isinstance(node, dict) else range(len(node)))
    where = ".".join(map(str, [*path, place]))
    kind, value = draw.random(), draw.choice(WRONG)
    if kind < 0.4:
        del node[place]
        return f"{where} removed"
    if kind < 0.5 and isinstance(node, dict):
        node["renamed"] = node.pop(place)
        return f"{where} renamed"
    node[place] = value
    return f"{where} = {value!r}"


def _nodes(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if isinstance(tree, (dict, list)):
        yield path, tree
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _nodes(value, (*path, key))


def once_rendered(folder: Path) -> Any:
    """A context in which the page of the whole records is not rendered again: it takes a second."""
    known = [summarize(folder / name) for name in ("done", "searched")]
    write_page = cli.report.write_page

    def write_unknown(summary: Summary, where: Path, trusted: bool) -> Path:
        return (
            where / "report.html"
            if any(_untimed(summary) == _untimed(one) for one in known)
            else write_page(summary, where, trusted)
        )

    return patch.object(cli.report, "write_page", write_unknown)


def _untimed(summary: Summary) -> tuple[Any, ...]:
    """All that a page shows, but for how long the runs took."""
    cells = [(cell.runs, [{**row, "seconds": 0.0} for row in cell.results], cell.histories) for cell in summary.cells]
    return cells, summary.planned, summary.environment, summary.sweep


def fault_of(case: Case, changed: dict[str, bytes | None], folder: Path) -> str:
    """What is wrong with how the command ends on the changed files; an empty string if nothing is."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in {**case.files, **changed}.items():
        if content is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    found = outcome_of(lambda: case.command(folder))
    said = f"code {found.code}, said:\n" + "\n".join([found.out, *found.err])
    if found.code == 2:
        errors = [line for line in found.err if not _is_note(line)]
        return "" if len(errors) == 1 and is_error(errors[0]) else said
    if found.code == 1 and not case.is_sealed:  # what a run raises on the state of its checkpoint is a failed run
        return "" if sum(line.startswith("failed: ") for line in found.err) == 1 else said
    if found.code != 0 or not all(map(_is_note, found.err)):
        return said
    if case.is_sealed and case.tells(folder, found) != case.expected:
        return f"accepted, and tells something else: {said}"
    return ""


def _is_note(line: str) -> bool:
    """Whether a line is no error: a note, or how the runs of an arm are made."""
    return line.startswith("note: ") or " as one stack: an epoch takes " in line


def faults(count: int, folder: Path, seed: int = 0) -> Iterator[tuple[str, str] | None]:
    """For each of so many damages what was done and what is wrong with how the command ended; None if nothing is."""
    made, pages = cases(folder), once_rendered(folder)
    for number in range(count):
        draw = random.Random(f"{seed} {number}")
        case = draw.choice(made)
        how, changed = damage(case.files, draw)
        with pages:
            said = fault_of(case, changed, folder / "damaged")
        yield (f"damage {number}, {case.name}: {how}", said) if said else None


def _study_at(path: Path, tree: dict[str, Any]) -> Path:
    path.write_text("\n".join(f"{key} = {toml(value)}" for key, value in tree.items()))
    return path
