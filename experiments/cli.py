"""The command line: ``python -m experiments run CONFIG``, ``sweep CONFIG``, ``report DIR`` and ``bench``."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
import typer

import torchreg
from experiments import benches, config, report
from experiments.config.names import folder_name, slug
from experiments.errors import UserError, did_you_mean
from experiments.report import summarize
from experiments.running import study, sweep

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
_BENCHES = f"Which: {', '.join(benches.BENCHES)}; all of them by default."


_Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="The study's TOML file.")]
_Overrides = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Overrides a key.")]
_Out = Annotated[Path | None, typer.Option(help="Folder for the records; runs/NAME by default.")]
_Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
_Resume = Annotated[bool, typer.Option("--resume", help="Go on with a study that was stopped.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"torchreg {torchreg.__version__}, torch {torch.__version__}, Python {platform.python_version()}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Shows the versions and exits.")
    ] = False,
) -> None:
    """Overfitting studies from configuration files."""


@app.command("run")
def run(
    path: _Config,
    overrides: _Overrides = [],  # noqa: B006
    out: _Out = None,
    device: _Device = "auto",
    resume: _Resume = False,
) -> None:
    """Runs a study and writes its report."""
    loaded = config.load(path, overrides)
    if loaded.sweep is not None:
        raise UserError(f"{path}: holds a search, in its table sweep: python -m experiments sweep {path}")
    folder = out or Path("runs") / folder_name(slug(loaded.name))
    with _resumable(folder):
        diverged = study.run_study(loaded, folder, study.pick_device(device), resume)
    _report(folder)
    _end([f"diverged: {line}" for line in diverged])


@app.command("sweep")
def search(
    path: _Config,
    overrides: _Overrides = [],  # noqa: B006
    out: _Out = None,
    device: _Device = "auto",
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time, each in a process with its share of threads.")] = 1,
    resume: _Resume = False,
) -> None:
    """Searches over the keys that the table "sweep" of a study names, and writes the report."""
    loaded = config.load(path, overrides)
    folder = out or Path("runs") / folder_name(slug(loaded.name))
    with _resumable(folder):
        faults = sweep.run_sweep(loaded, folder, study.pick_device(device), jobs, resume)
    try:
        _report(folder)
    finally:
        _end(faults)


@app.command("report")
def render(folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder that 'run' wrote.")]) -> None:
    """Prints a study's table and renders its page anew."""
    _report(folder)


@app.command("bench")
def measure(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help=_BENCHES)] = None,
    into: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also writes the figures there, and as .md.")
    ] = None,
) -> None:
    """Times torchreg, plain torch and other libraries side by side on the CPU."""
    for name in names or []:
        if name not in benches.BENCHES:
            raise UserError(f"bench: unknown name {name!r}, {did_you_mean(name, benches.BENCHES)}")
    if into is not None and into.suffix != ".json":
        raise UserError(f"bench: --json must name a .json file, beside which a .md is written, got {into}")
    benches.run(names or list(benches.BENCHES), into)


@contextmanager
def _resumable(folder: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        print(f"\nstopped; run it again with --resume --out {folder} to go on", file=sys.stderr)
        raise typer.Exit(130) from None


def _end(faults: list[str]) -> None:
    for line in faults:
        print(line, file=sys.stderr)
    if faults:
        raise typer.Exit(1)


def _report(folder: Path) -> None:
    summary = summarize(folder)
    print(report.table(summary))
    print(f"\nReport: {report.write_page(summary, folder).resolve()}")


def main() -> None:
    """Runs the command line; the user's mistakes end it with one line each and exit code 2."""
    try:
        app()
    except UserError as error:
        sys.exit(_complain(str(error)))
    except OSError as error:
        sys.exit(_complain(f"{error.filename or 'files'}: cannot be read or written: {error.strerror or error}"))


def _complain(text: str) -> int:
    for line in text.splitlines():
        print(f"error: {line}", file=sys.stderr)
    return 2
