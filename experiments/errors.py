"""The user's mistakes, as one line each."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Something the user can put right; the command line prints its text and exits with 2."""


def did_you_mean(word: str, valid: Iterable[str]) -> str:
    """A hint that names the nearest valid word, or lists them all if none is near."""
    valid = sorted(valid)
    near = get_close_matches(word, valid, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"valid: {', '.join(valid)}"
