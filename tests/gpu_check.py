"""What holds on a GPU: ``python3 -m tests.gpu_check`` runs the tests marked ``cuda`` and the bench of CUDA.

It needs torch, pytest and, for anything but a report of what was skipped, a CUDA device; nothing is installed. The
results are written to docs/gpu.json and docs/gpu.md. ``--into FOLDER`` writes them elsewhere. ``--no-bench`` keeps the
tables that are there, with the machine that they are from.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
import xml.etree.ElementTree as ElementTree
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
FOLDERS = ["tests/cuda"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tests.gpu_check", description=__doc__.splitlines()[0])
    parser.add_argument("--into", type=Path, default=ROOT / "docs", help="the folder for gpu.json and gpu.md")
    parser.add_argument("--no-bench", action="store_true", help="runs the tests alone")
    options = parser.parse_args()
    options.into.mkdir(parents=True, exist_ok=True)
    before = kept(options.into / "gpu.json") if options.no_bench else {}
    found = {"tests": {"machine": machine(), **tests()}, "machine": machine(), "tables": [], "faults": [], **before}
    write(options.into, found)
    if torch.cuda.is_available() and not options.no_bench:
        benches(options.into, found)
    print(markdown(found))
    print(f"written to {options.into / 'gpu.json'} and gpu.md")
    return 1 if found["tests"]["failed"] or (found["faults"] and not before) else 0


def machine() -> dict[str, str]:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none: what needs one was skipped"
    return {
        "date": date.today().isoformat(),
        "device": device,
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
    }


def kept(file: Path) -> dict[str, Any]:
    """The tables of a file that was written before; nothing if it is missing or damaged."""
    try:
        before = json.loads(file.read_text())
        return {key: before[key] for key in ("machine", "tables", "faults")}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def tests() -> dict[str, Any]:
    """How many tests marked ``cuda`` pass, fail and are skipped, by file."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", *FOLDERS, "-m", "cuda", "-q", "--tb=short", f"--junitxml={report}"]
        command += ["-p", "no:cacheprovider", *_processes()]
        alone = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # others' plugins warn, and warnings are errors
        code = subprocess.run(command, cwd=ROOT, env=alone, check=False).returncode
        if not report.exists():
            raise SystemExit(f"pytest ended with exit status {code} and without a report")
        cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    total: Counter[str] = Counter()
    failures = []
    for case in cases:
        outcome = next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed")
        total[outcome] += 1
        if outcome in ("failure", "error"):
            failures.append(f"{case.get('classname')}::{case.get('name')}")
    return {
        "passed": total["passed"],
        "failed": len(failures),
        "skipped": total["skipped"],
        "failures": failures,
        "seconds": round(time.monotonic() - started),
    }


def _processes() -> list[str]:
    """Several processes where pytest-xdist is installed: most of the time goes to launches, not to the device."""
    try:
        import xdist  # noqa: F401
    except ImportError:
        return []
    return ["-p", "xdist", "-n", str(min(8, os.cpu_count() or 1))]


def benches(into: Path, found: dict[str, Any]) -> None:
    """The tables of ``experiments/benches/cuda.py``, written as they are measured."""
    from experiments.benches import cuda
    from experiments.benches.timing import Clock

    for part in cuda.parts(Clock("cuda")):
        tables = {}
        try:
            for table in part():
                tables[table.title] = table  # which grows
        except Exception as error:  # the other results must not be lost
            traceback.print_exc()
            found["faults"].append(f"{type(error).__name__}: {error}".partition("\n")[0])
        for table in tables.values():
            if table.rows:
                print(f"{table}\n", flush=True)
                found["tables"].append({**table.as_json(), "shown": str(table)})
        write(into, found)


def write(into: Path, found: dict[str, Any]) -> None:
    (into / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
    (into / "gpu.md").write_text(markdown(found))


def markdown(found: dict[str, Any]) -> str:
    counts = "{passed} passed, {failed} failed, {skipped} skipped".format(**found["tests"])
    lines = [
        "# On a GPU",
        "",
        "Written by `python3 -m tests.gpu_check`. [What it costs](guides/costs.md) says what follows.",
        "",
        f"Tests marked `cuda`: {counts}; {_told(found['tests']['machine'])}.",
    ]
    lines += [f"- {name}" for name in found["tests"]["failures"]]
    if found["tables"]:
        lines += ["", f"Tables: {_told(found['machine'])}."]
    for table in found["tables"]:
        lines += ["", "```text", table["shown"], "```"]
    if not found["tables"]:
        lines += ["", "The bench was not run."]
    lines += [f"\nA bench failed: {fault}" for fault in found["faults"]]
    return "\n".join(lines) + "\n"


def _told(machine: dict[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in machine.items())


if __name__ == "__main__":
    raise SystemExit(main())
