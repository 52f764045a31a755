"""The command line: ``python -m experiments run CONFIG``, ``report DIR`` and ``bench``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from experiments import bench, config, report, study
from experiments.errors import UserError, did_you_mean
from experiments.summary import summarize

app = typer.Typer(
    add_completion=False,
    help="Overfitting studies from configuration files.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
_BENCHES = f"Which: {', '.join(bench.BENCHES)}; all of them by default."


@app.command("run")
def run(
    path: Annotated[Path, typer.Argument(metavar="CONFIG", help="The study's TOML file.")],
    overrides: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Overrides a key.")] = [],  # noqa: B006
    out: Annotated[Path | None, typer.Option(help="Folder for the records; runs/NAME by default.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a study that was stopped.")] = False,
) -> None:
    """Runs a study and writes its report."""
    loaded = config.load(path, overrides)
    folder = out or Path("runs") / config.slug(loaded.name)
    try:
        diverged = study.run_study(loaded, folder, study.pick_device(device), resume)
    except KeyboardInterrupt:
        print(f"\nstopped; run it again with --resume --out {folder} to go on", file=sys.stderr)
        raise typer.Exit(130) from None
    _report(folder)
    for line in diverged:
        print(f"diverged: {line}", file=sys.stderr)
    if diverged:
        raise typer.Exit(1)


@app.command("report")
def render(folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder that 'run' wrote.")]) -> None:
    """Prints a study's table and renders its page anew."""
    _report(folder)


@app.command("bench")
def measure(names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help=_BENCHES)] = None) -> None:
    """Times torchreg against plain torch on the CPU."""
    for name in names or []:
        if name not in bench.BENCHES:
            raise UserError(f"bench: unknown name {name!r}, {did_you_mean(name, bench.BENCHES)}")
    print(bench.run(names or list(bench.BENCHES)))


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
