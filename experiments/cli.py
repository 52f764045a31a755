"""The command line: ``python -m experiments run CONFIG``, ``sweep CONFIG``, ``report DIR``, ``bench`` and so on."""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, TextIO

import torch
import typer

import torchreg

from . import COMMAND, config, report
from .benches import command as benches
from .benches import comparing
from .benches.timing import Clock
from .config.names import folder_name, slug
from .errors import UserError
from .report import summarize
from .report.evidence import Evidence, Origin, check_measures, check_place, reduce, write_page
from .running import catalog, engines, study, sweep
from .running.outline import outline
from .training import denormals, interrupts, loggers, ranks
from .training.record import read_study
from .training.sameness import are_same, obstacle
from .training.storage import place

app = typer.Typer(
    add_completion=Path(sys.argv[0]).name != "__main__.py",  # a shell completes a script by its name, not python -m
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # else a word in brackets is taken for a style
)
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]  # which typer has, and does not name
_EXAMPLES = {
    "run": "quickstart",
    "sweep": "sweep",
    "report": "runs/quickstart",
    "compare": "runs/digits runs/mnist",
    "new": "mine",
    "show": "quickstart",
}
_BENCHES = (
    f"Which: {', '.join(benches.BENCHES)}; on CUDA {', '.join(benches.ON_CUDA)}; all of them by default. "
    "Or: compare A.json B.json."
)


def _locate(text: str) -> Path:
    if "://" in text:
        raise UserError(f"CONFIG: must be a file of this machine or a shipped study, got {text}: copy it here")
    return catalog.located(Path(text))


_CONFIG_HELP = "The study's TOML file, or the name of a shipped study."
_OUT_HELP = "Folder for the records, or an address such as s3://bucket/mine; runs/NAME by default."
_Config = Annotated[Path, typer.Argument(metavar="CONFIG", help=_CONFIG_HELP, parser=_locate)]
_Overrides = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Overrides a key.")]
_Out = Annotated[Path | None, typer.Option(metavar="DIR", parser=place, help=_OUT_HELP)]
_Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
_Log = Annotated[str | None, typer.Option(metavar="NAME", help=f"Also tells {', '.join(loggers.LOGGERS)}.")]
_Engine = Annotated[str | None, typer.Option(metavar="NAME", help=f"Where runs are made: {', '.join(engines.NAMES)}.")]
_Jobs = Annotated[int | None, typer.Option(min=1, help="Runs or stacks at a time, each in a process of its own.")]
_Address = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="Of ray: its cluster's; by default this machine.")
]
_Cpus = Annotated[int | None, typer.Option(min=1, help="Of ray: CPUs of a run or stack; 1 by default.")]
_Gpus = Annotated[float | None, typer.Option(help="Of ray: GPUs of a run or stack, or a part of one, such as 0.25.")]
_Memory = Annotated[str | None, typer.Option(metavar="SIZE", help="Of ray: memory of a run or stack, such as 2GB.")]
_Resume = Annotated[bool, typer.Option("--resume", help="Go on with a study that was stopped.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"torchreg {torchreg.__version__}, torch {torch.__version__}, Python {platform.python_version()}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Shows the versions and exits.")
    ] = False,
) -> None:
    """Overfitting studies from configuration files."""
    if ranks.is_launched() and context.invoked_subcommand != "run":
        raise UserError(f"{context.invoked_subcommand}: is for one process, torchrun starts 'run' alone")


@app.command("run")
def run(
    path: _Config,
    overrides: _Overrides = [],  # noqa: B006
    out: _Out = None,
    device: _Device = "auto",
    engine: _Engine = None,
    jobs: _Jobs = None,
    address: _Address = None,
    cpus: _Cpus = None,
    gpus: _Gpus = None,
    memory: _Memory = None,
    log: _Log = None,
    resume: _Resume = False,
) -> None:
    """Runs a study and writes its report."""
    on, for_ray = study.pick_device(device), engines.ForRay(address, cpus, gpus, memory)
    if ranks.is_launched() and (engine or jobs):
        raise UserError("--engine, --jobs: are for one process, not for those of torchrun: leave them out")
    loaded = config.load(path, overrides)
    if loaded.sweep is not None:
        raise UserError(f"{path}: holds a search, in its table sweep: {COMMAND} sweep {path}")
    folder = out or Path("runs") / folder_name(slug(loaded.name))
    loggers.choose(log, loaded.name, folder)
    with _resumable(folder), ranks.begun(on) as own:
        with engines.choose(engine, jobs, own, for_ray) as chosen:  # which ends before the report begins
            broken = study.run_study(loaded, folder, own, resume, chosen)
        try:
            ranks.by_first(_report)(folder, trusted=True, is_checked=True)
        finally:
            _end(broken)


@app.command("sweep")
def search(
    path: _Config,
    overrides: _Overrides = [],  # noqa: B006
    out: _Out = None,
    device: _Device = "auto",
    engine: _Engine = None,
    jobs: _Jobs = None,
    address: _Address = None,
    cpus: _Cpus = None,
    gpus: _Gpus = None,
    memory: _Memory = None,
    storage: Annotated[
        str | None, typer.Option(metavar="URL", help="Optuna's storage; by default a journal in the folder.")
    ] = None,
    log: _Log = None,
    resume: _Resume = False,
) -> None:
    """Searches over the keys that the table [sweep] of a study names, and writes the report."""
    on, for_ray = study.pick_device(device), engines.ForRay(address, cpus, gpus, memory)
    loaded = config.load(path, overrides)
    folder = out or Path("runs") / folder_name(slug(loaded.name))
    loggers.choose(log, loaded.name, folder)
    with _resumable(folder):
        with engines.choose(engine, jobs, on, for_ray) as chosen:
            faults = sweep.run_sweep(loaded, folder, on, resume, chosen, storage)
        try:
            _report(folder, trusted=True)
        finally:
            _end(faults)


@app.command("report")
def render(
    folder: Annotated[Path, typer.Argument(metavar="DIR", parser=place, help="The folder that 'run' wrote.")],
) -> None:
    """Prints a study's table and renders its page anew."""
    _report(folder)


@app.command("compare")
def contrast(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR...", parser=place, help="The folders of two studies or more.")
    ],
    html: Annotated[Path | None, typer.Option(metavar="FILE", parser=place, help="Also writes a page there.")] = None,
) -> None:
    """Compares the arms that several studies have in common, seed by seed."""
    if html is not None and (not html.name or html.is_dir()):
        raise UserError(f"compare: --html must name a file to write, got the folder {html}")
    found = report.compare(folders)
    _print(report.text_of(found))
    if html is not None:
        print(f"\nPage: {report.write_comparison(found, html).resolve()}")


@app.command("evidence")
def prove(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="A study with a table [published]: a shipped one, or a TOML file."),
    ] = None,
    overrides: _Overrides = [],  # noqa: B006
    out: _Out = None,
    device: _Device = "auto",
    jobs: _Jobs = None,
    resume: _Resume = False,
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="DIR", parser=place, help="Takes the records of this folder, and runs nothing."),
    ] = None,
    docs: Annotated[
        Path | None, typer.Option(metavar="DIR", parser=place, help="The folder of the page evidence.md, if not docs.")
    ] = None,
) -> None:
    """Repeats a published result, and writes the page of all such results; without a name the page alone."""
    pages = docs or Path("docs")
    if name is None:
        check_place(pages)
        if overrides or out or jobs or resume or source or device != "auto":
            options = "--set, --out, --device, --jobs, --resume and --from"
            raise UserError(f"evidence: {options} need a NAME: {catalog.proofs()}")
        _end(_write_page(pages))
        return
    path = catalog.proof(name)
    loaded = config.load(path, overrides)
    if loaded.published is None:
        raise UserError(f"evidence: {path} has no table [published], which says what it is held against: add it")
    if source is not None and (out or jobs or resume or device != "auto"):
        raise UserError("--from: takes records as they are: leave out --out, --device, --jobs and --resume")
    command = shlex.join([*COMMAND.split(), "evidence", name, *(word for one in overrides for word in ("--set", one))])
    origin = Origin(path.stem, command, catalog.seen_from(pages, path))
    before = check_place(pages, origin)
    check_measures(loaded)
    folder = source or out or Path("runs") / folder_name(slug(loaded.name))
    broken: list[str] = []
    if source is None:
        on = study.pick_device(device)
        with _resumable(folder), engines.choose(None, jobs, on, engines.ForRay()) as chosen:
            make = study.run_study if loaded.sweep is None else sweep.run_sweep
            broken = make(loaded, folder, on, resume, chosen)
    elif not are_same(there := read_study(folder), loaded):
        others = obstacle(there, loaded) or "with fewer runs"
        raise UserError(f"--from: {folder} must hold the runs of {path}, is of a study {others}: give its --set, too")
    try:
        found = reduce(loaded, summarize(folder), origin)
        broken = [*broken, *_write_page(pages, found)]
        if before is not None and before.is_whole and not found.is_whole:
            print(f"note: {found.runs} of {found.planned} runs replace a record of all {before.runs}", file=sys.stderr)
    finally:
        _end(broken)


def _write_page(docs: Path, new: Evidence | None = None) -> list[str]:
    """Writes the page of the evidence; returns what is wrong with the records that it could not show."""
    page, faults = write_page(docs, catalog.published(), new)
    print(f"Page: {page.resolve()}")
    return faults


@app.command("list")
def list_studies() -> None:
    """Lists the studies that are shipped and those in the current folder, each with its number of runs."""
    found = list(catalog.entries())
    width = max((len(entry.shown) for entry in found), default=0)
    for entry in found:
        line = f"{entry.shown:<{width}}  {entry.runs:>5} runs  {entry.about}"
        print(f"{entry.shown:<{width}}  faulty: {entry.fault}" if entry.fault else _in_width(line.rstrip()))


@app.command("new")
def begin(name: Annotated[str, typer.Argument(metavar="NAME", help="The study's name, and its file's.")]) -> None:
    """Writes NAME.toml, a study with comments to begin from, which can be run at once."""
    path = catalog.begin(name)
    print(f"{path} is written; run it with: {COMMAND} run {shlex.quote(str(path))}")


@app.command("show")
def show(
    path: _Config,
    overrides: _Overrides = [],  # noqa: B006
    device: _Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Prints JSON instead of TOML with comments.")] = False,
) -> None:
    """Shows a study as it would be run: its keys, runs and models, and about how long it takes here."""
    tree = config.tree_of(path, overrides)
    loaded = config.resolve(tree)
    outlined = outline(loaded, study.pick_device(device))
    print(outlined.as_json(tree) if as_json else outlined.as_toml(tree))


@app.command("schema")
def print_schema() -> None:
    """Prints the JSON schema of a study's file, by which an editor completes and checks it."""
    print(json.dumps(catalog.schema_of_studies(), indent=1))


@app.command("bench")
def measure(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help=_BENCHES)] = None,
    into: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also writes the figures there, and as .md.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help=f"A first look in two minutes: {', '.join(benches.QUICK)}.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, or cuda with the benches that there are for it.")] = "cpu",
) -> None:
    """Times torchreg, plain torch and other libraries side by side; 'compare A.json B.json' compares two such files."""
    if names and names[0] == "compare":
        if into is not None or quick or device != "cpu":
            raise UserError("bench compare: takes two files, and no options")
        print(comparing.compare(names[1:]))
        return
    if into is not None and into.suffix != ".json":
        raise UserError(f"bench: --json must name a .json file, beside which a .md is written, got {into}")
    clock = Clock(study.pick_device(device).type, quick)
    with _stoppable(lambda: f"stopped; what was measured is in {into}" if into and into.exists() else "stopped"):
        benches.run(names or (), into, clock)


def _resumable(folder: Path) -> AbstractContextManager[None]:
    return _stoppable(lambda: f"stopped; run it again with --resume --out {folder} to go on")


@contextmanager
def _stoppable(line: Callable[[], str]) -> Iterator[None]:
    """Ends with a line if Ctrl-C is pressed, or if the process is asked to end (SIGTERM)."""
    with interrupts.heard():  # to the end, since torchrun may ask again
        try:
            yield
        except KeyboardInterrupt as error:
            code = getattr(error, "code", 128 + signal.SIGINT)
            if ranks.is_several():
                ranks.end(line(), code)
            print(f"\n{line()}", file=sys.stderr)
            raise typer.Exit(code) from None
        except ranks.LostError as error:
            ranks.end(f"error: a process was lost, or failed alone ({error}): {line()}", 1)


def _in_width(line: str) -> str:
    """The line, cut at the width of the terminal if it is one."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else len(line)
    return line if len(line) <= width else f"{line[: width - 3]}..."


def _end(faults: list[str]) -> None:
    for line in faults:
        print(line, file=sys.stderr)
    if faults:
        raise typer.Exit(1)


def _report(folder: Path, trusted: bool = False, is_checked: bool = False) -> None:
    summary = summarize(folder, is_checked)
    _print(report.table(summary))
    print(f"\nReport: {report.write_page(summary, folder, trusted).resolve()}")


def _print(text: str) -> None:
    try:
        "±".encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = text.replace("± ", "+-")  # of the same width
    print(text)


def main() -> None:
    """Runs the command line; the user's mistakes end it with one line each and exit code 2."""
    sys.stdout, sys.stderr = sys.stdout or _nowhere(), sys.stderr or _nowhere()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal may lack a letter of a name
    with denormals.flushed():
        ranks.listen()
        sys.exit(ranks.leave(bounded(lambda: app(standalone_mode=False))))


def _nowhere() -> TextIO:
    """Stands for an output that was closed before the start, as by ``>&-``: Python has None for it."""
    return Path(os.devnull).open("w", encoding="utf-8")


def bounded(command: Callable[[], int | None]) -> int:
    """The exit code of a command; 2 and a line for each of the user's mistakes, 1 if nobody reads its output."""
    try:
        code = command()
        sys.stdout.flush()
    except UserError as error:
        return _complain(str(error))
    except _UsageError as error:
        return _misused(error)
    except typer.Abort:  # Ctrl-C
        return 128 + signal.SIGINT
    except BrokenPipeError:  # as in "| head": nobody is left to tell
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still flushes at its end
        return 1
    except OSError as error:
        return _complain(f"{error.filename or 'the output'}: cannot be read or written: {error.strerror or error}")
    return code or 0


def _misused(error: Any) -> int:
    """Says how a command is written."""
    said, context = error.format_message(), error.ctx
    if context is None or not sys.argv[1:]:  # then it is the help
        error.show()
        return 2
    name = context.info_name
    hint = f"{context.command_path} --help tells"
    if said.startswith("Missing argument") and name in _EXAMPLES:
        hint = f"as in {COMMAND} {name} {_EXAMPLES[name]}"
    return _complain(f"{said.splitlines()[0].rstrip('.')}: {hint}")


def _complain(text: str) -> int:
    for line in text.splitlines():
        print(f"error: {line}", file=sys.stderr)
    return 2
