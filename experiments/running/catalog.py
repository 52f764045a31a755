"""Studies at hand: those that are shipped, those in the current folder, and the beginning of a new one."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby, takewhile
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from .. import COMMAND, IS_INSTALLED, SHIPPED, config
from ..config import Published
from ..config.names import slug
from ..config.schema import schema
from ..config.sections import Name, Tree
from ..config.toml import dumped
from ..errors import UserError
from ..training import build, models

_PUBLISHED = "published"  # the folder of studies that repeat published ones
_START = """\
# One line on what this study is about; '{command} list' shows it.
#   {command} show {file}
#   {command} run {file}
# The guide is docs/guides/studies.md of torchreg. An editor completes keys by a schema, which is written by
#   {command} schema > study.schema.json
# and named in the first line of this file:  #:schema study.schema.json
{name}
seeds = [0, 1, 2]         # one run for each; two or more tell differences between arms

[data]
name = "digits"           # or "mnist", or data of your own: docs/guides/own_data.md
train_size = 300          # few images, so that the network learns them one by one
valid_size = 400          # on these, a strength is chosen; the test images are others
label_noise = 0.2         # every fifth training label is wrong

[model]
name = "mlp"              # or "cnn", or  class = "package.module:Class"  for a model of your own
hidden = [64, 64]

[optimizer]
name = "AdamW"            # any of torch.optim or torchreg.optim, with its own arguments as keys
lr = 3e-3

[train]
epochs = 80
batch_size = 50
evaluate_every = 4        # epochs

# An arm is the study with some keys changed.
[[arms]]
name = "none"

[[arms]]
name = "L1"
strengths = [0.1, 0.3]    # one run for each; the report picks by the validation error
regularizers = [{{ penalty = "L1", mode = "prox" }}]

[[arms]]
name = "dropout"
model.dropout = {{ name = "Dropout", p = 0.5 }}
"""


@dataclass(frozen=True)
class Entry:
    """A file that holds a study, with what it is about; or with its fault."""

    path: Path
    shown: str
    runs: int = 0
    about: str = ""
    fault: str = ""


def entries() -> Iterator[Entry]:
    """The shipped studies, then those in the current folder; other TOML files are passed over."""
    seen = set()
    for path in (*sorted(SHIPPED.glob("**/*.toml")), *sorted(Path().glob("*.toml"))):
        if path.resolve() not in seen and (entry := _entry(path)) is not None:
            seen.add(path.resolve())
            yield entry


def located(path: Path) -> Path:
    """The file of a study, which may be given by the name of a shipped one, such as ``mnist/overfit``."""
    shipped = SHIPPED / f"{path}.toml"
    return shipped if not path.suffix and not path.exists() and shipped.is_file() else path


def proof(name: str) -> Path:
    """The file of a study that repeats a published one: a path, or the name of a shipped one.

    Raises:
        UserError: there is no such study; the line lists those that there are.
    """
    if name.endswith(".toml"):
        return Path(name)
    shipped = SHIPPED / _PUBLISHED / f"{name}.toml"
    if not slug(name) == name or not shipped.is_file():
        raise UserError(f"evidence: unknown study {name!r}: {proofs()}")
    return shipped


def seen_from(folder: Path, path: Path) -> str:
    """The name of a shipped study that repeats a published one; of another study its file, as seen from a folder."""
    file = path.resolve()
    if file.parent == (SHIPPED / _PUBLISHED).resolve():
        return file.stem
    try:
        return Path(os.path.relpath(file, folder.resolve())).as_posix()
    except ValueError:  # on another drive of Windows
        return file.as_posix()


def proofs() -> str:
    """The names of the shipped studies that repeat published ones, as text."""
    return f"there are {', '.join(published())}"


def published() -> dict[str, Published]:
    """What the shipped studies are held against, by their names."""
    found = {path.stem: config.load(path).published for path in sorted((SHIPPED / _PUBLISHED).glob("*.toml"))}
    return {name: table for name, table in found.items() if table is not None}


def _shown(path: Path) -> str:
    """The path as seen from the current folder, if the file is below it; of one that was installed its name."""
    if IS_INSTALLED and path.is_relative_to(SHIPPED):
        return path.relative_to(SHIPPED).with_suffix("").as_posix()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _entry(path: Path) -> Entry | None:
    try:
        text = path.read_text(encoding="utf-8-sig")
        keys = tomllib.loads(text).keys()
    except (OSError, ValueError, RecursionError):
        return None
    if "extends" not in keys and not {"model", "train", "optimizer"} <= keys:
        return None
    try:
        study = config.load(path)
    except UserError as error:
        return Entry(path, _shown(path), fault=str(error).splitlines()[0])
    return Entry(path, _shown(path), sum(counts(study).values()), _about(text))


def _about(text: str) -> str:
    """The first sentence of the comment that a file begins with, without commands, which are indented."""
    lines = (line for line in text.splitlines() if not line.startswith("#:"))
    comment = takewhile(lambda line: re.match(r"# ?\S", line), lines)
    return re.split(r"(?<=[.?!]) ", " ".join(line.lstrip("# ") for line in comment))[0].rstrip(":")


def counts(study: config.Study) -> dict[str, int]:
    """The number of runs of each arm; of an arm that is searched, at all its points."""
    points = study.sweep.points if study.sweep else 1
    groups = ((arm, list(runs)) for arm, runs in groupby(study.runs, key=lambda run: run.arm))
    return {arm: len(runs) * (points if runs[0].values else 1) for arm, runs in groups}


def begin(name: str) -> Path:
    """Writes a file to begin a study from, which must not exist yet."""
    path = Path(name if name.endswith(".toml") else f"{name}.toml")
    study = path.name.removesuffix(".toml")
    try:
        TypeAdapter(Name).validate_python(study)
    except ValidationError:
        raise UserError(f"new: NAME must be of 1 to 80 letters in one line, got {name!r:.200}") from None
    text = _START.format(command=COMMAND, file=path.as_posix(), name=dumped({"name": study}).strip())
    try:
        with path.open("x", encoding="utf-8") as file:
            try:
                file.write(text)
                file.flush()
            except OSError:
                with suppress(OSError):
                    path.unlink()
                raise
    except FileExistsError:
        raise UserError(f"new: {path} exists already: choose another name, or remove it") from None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(
            f"new: {path} cannot be written: {why}: name a file in a folder that you may write to"
        ) from None
    return path


def schema_of_studies() -> Tree:
    """The JSON schema of a study's file, with the names that :mod:`experiments.training.build` knows."""
    return schema(
        {
            "Model.name": models.BUILT_IN,
            "Model.dropout": build.DROPOUTS,
            "Model.input_dropout": build.DROPOUTS,
            "Model.wrap": build.WRAPPERS,
            "Model.init": build.INITS,
            "Optimizer.name": build.OPTIMIZERS,
            "Penalty.name": build.PENALTIES,
            "Regularizer.penalty": {**build.PENALTIES, **build.CONSTRAINTS},
            "Regularizer.activity": build.PENALTIES,
            "Regularizer.schedule": build.SCHEDULES,
            "Scheduler.name": build.SCHEDULERS,
            "Settings.dropout_schedule": build.SCHEDULES,
        }
    )
