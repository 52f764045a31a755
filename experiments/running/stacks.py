"""Runs that differ in seeds and strengths alone, trained as one stacked model where that is faster."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ..config import Run
from ..errors import RecordError, StorageError, UserError, oneline
from ..training import ranks
from ..training.files import checksum
from ..training.loop import train_together
from ..training.record import Record, Row, load_sealed, save_sealed
from ..training.sameness import digest_of
from ..training.storage import exists, make_folder, remove, remove_folder_if_empty
from ..training.together import is_strength_0_of, kind_of
from .plans import is_stacked

LARGEST = 64  # members of one stack
_FOLDER = "stacks"  # of their checkpoints


def groups(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs in groups that could be stacks, each in the place of its first run.

    Runs without regularizers join those that they are at strength 0. Both are equal to the bit where the products of
    matrices are: those of some shapes are rounded differently at other places in memory, and so in the stack.
    """
    kinds = [kind_of(run) for run in runs]
    firsts = dict(zip(reversed(kinds), reversed(runs), strict=True))
    homes = {
        kind: next((other for other in dict.fromkeys(kinds) if is_strength_0_of(first, firsts[other])), kind)
        for kind, first in firsts.items()
    }
    found: dict[str, list[Run]] = {}
    for run, kind in zip(runs, kinds, strict=True):
        found.setdefault(homes[kind], []).append(run)
    return [group[i : i + LARGEST] for group in found.values() for i in range(0, len(group), LARGEST)]


def tidy(folder: Path) -> None:
    """Removes what is left of the stacks of a study when all of them have ended."""
    remove_folder_if_empty(folder / _FOLDER)


class StackStore:
    """The checkpoint of a stack, in a file of the study's folder; it says which runs are in the stack."""

    def __init__(self, folder: Path, group: Sequence[Run]) -> None:
        name = checksum(json.dumps([run.folder for run in group]).encode())[:12]
        self.path, self._group = folder / _FOLDER / f"{name}.pt", group
        self.runs: list[Run] = []

    def load(self) -> Row | None:
        """The checkpoint, if there is one; :attr:`runs` are then the runs in the stack."""
        if not exists(self.path):
            return None
        try:
            state, is_sealed = load_sealed(self.path)
            ours = {run.folder: run for run in self._group}
            self.runs = [ours[name] for name in state["runs"]]
            if not is_sealed or [digest_of(run) for run in self.runs] != state["digests"]:
                raise ValueError("altered, or of other runs")
        except StorageError:
            raise
        except Exception:  # torch.load raises what it likes on a damaged file
            print(f"note: {self.path} is damaged: its runs start afresh", file=sys.stderr)
            self.discard()
            return None
        return state if state["epoch"] else None

    def save(self, state: Row) -> None:
        """Replaces the checkpoint."""
        make_folder(self.path.parent)
        names = [run.folder for run in self.runs]
        save_sealed(self.path, {**state, "runs": names, "digests": [digest_of(run) for run in self.runs]})

    def discard(self) -> None:
        """Removes what nothing needs any more. The folder stays: another stack may be about to write there."""
        remove(self.path)


def make_together(group: Sequence[Run], folder: Path, device: torch.device) -> dict[str, Row]:
    """The results of those runs of a group that were trained as a stack, by their folders; none if they are not."""
    store = StackStore(folder, group)
    is_begun = ranks.by_first(lambda: store.load() is not None or bool(store.runs))()
    if is_begun and ranks.is_several():
        raise UserError(f"{store.path}: holds runs that were begun as a stack: go on with them without torchrun")
    if not is_begun:
        store.runs = [run for run in group if not _is_begun(folder, run)]
        if len(store.runs) < 2 or group[0].train.stack is False or not is_stacked(store.runs, device):
            return {}
    records = [Record(folder / "runs" / run.folder, run) for run in store.runs]
    try:
        results = train_together(store.runs, device, records, store)
    except RecordError:
        raise
    except (Exception, SystemExit) as error:  # whatever one run raises; alone it is only its own fault
        print(f"note: {len(records)} runs are made one after another: {oneline(error)}", file=sys.stderr)
        store.discard()
        return {}
    store.discard()
    return {run.folder: result for run, result in zip(store.runs, results, strict=True)}


def _is_begun(folder: Path, run: Run) -> bool:
    """Whether the run has ended, or has a checkpoint of its own to go on from."""
    record = Record(folder / "runs" / run.folder, run)
    if exists(record.folder / "checkpoint.pt"):
        return True
    result = record.result
    return result is not None and result["status"] != "failed"
