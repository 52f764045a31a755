"""What makes two runs, or two studies, the same: whether one goes on where the other was stopped."""

from __future__ import annotations

from typing import Any

from ..config import Run, Study
from .files import checksum

# What a run may change when it goes on. Whether it is stacked or compiled may change the last bits, as another machine
# may, and is chosen by what is fast there.
_FREE: Any = {"data": {"root"}, "train": {"checkpoint_seconds", "compile", "shard", "stack"}}


def are_same(one: Study, other: Study) -> bool:
    """Whether two studies are the same in all but where the data lies, how often a checkpoint is written, and how many
    points are tried.
    """
    heads = [study.model_dump(exclude={"runs": True, "sweep": {"trials"}}) for study in (one, other)]
    runs = zip(one.runs, other.runs, strict=False)
    return (
        heads[0] == heads[1]
        and len(one.runs) == len(other.runs)
        and all(ours.model_dump(exclude=_FREE) == theirs.model_dump(exclude=_FREE) for ours, theirs in runs)
    )


def obstacle(there: Study, here: Study) -> str:
    """Why a study cannot go on in the folder of another one, in words; empty if it has all of its runs, or the same
    search.
    """
    if are_same(there, here):
        return ""
    if there.name != here.name:
        return f"of the name {there.name!r}"
    if (there.sweep is None) != (here.sweep is None):
        return "with a search" if there.sweep else "without a search"
    search, searched = (study.sweep and study.sweep.model_dump(exclude={"trials"}) for study in (there, here))
    if found := _first_difference(search, searched, "sweep"):
        return f"with another search: {found}"
    ours = {run.folder: run for run in here.runs}
    for run in there.runs:
        if run.folder not in ours:
            return f"with a run {run.folder} that this one does not have"
        its, own = (one.model_dump(mode="json", by_alias=True, exclude=_FREE) for one in (run, ours[run.folder]))
        if found := _first_difference(its, own):
            return f"with other settings of {run.folder}: {found}"
    known = {run.folder for run in there.runs}
    more = next((folder for folder in ours if folder not in known), "") if here.sweep else ""
    return more and f"without the run {more}"


def _first_difference(there: Any, here: Any, key: str = "") -> str:
    """The key at which two trees of settings differ first, with its values in both; empty if they do not."""
    if isinstance(there, dict) and isinstance(here, dict):
        keys = dict.fromkeys([*there, *here])
        inner = (_first_difference(there.get(k), here.get(k), f"{key}.{k}".lstrip(".")) for k in keys)
        return next(filter(None, inner), "")
    return "" if there == here else f"{key} is {there!r:.80} there and {here!r:.80} here"


def digest_of(run: Run) -> str:
    """The checksum of what makes two runs the same."""
    return checksum(run.model_dump_json(exclude=_FREE, exclude_defaults=True).encode())
