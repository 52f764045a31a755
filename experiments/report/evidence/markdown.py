"""Markdown: text that is shown letter by letter, code, and tables."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Within a line only, and so no letters that count at its beginning; an underscore within a word is one anyway.
_MARKS = re.compile(r"[\\`*<\[\]$&~]|_(?![^\W_])|(?<![^\W_])_")


def one_line(text: str) -> str:
    """The text with spaces for its ends of lines."""
    return " ".join(text.splitlines())


def literal(text: str) -> str:
    r"""Text in one line whose every letter is shown, since it is data and not written as Markdown.

    Example:
        >>> print(literal("a*b* <b>, train_size"))
        a\*b\* \<b>, train_size
    """
    return _MARKS.sub(r"\\\g<0>", one_line(text))


def code(text: str) -> str:
    """A code span in one line.

    Example:
        >>> code("optim.AdamW"), code("a`b"), code("`a")
        ('`optim.AdamW`', '``a`b``', '`` `a ``')
    """
    line, ticks = one_line(text), _ticks(text, 1)
    space = " " if line[:1] == "`" or line[-1:] == "`" else ""
    return f"{ticks}{space}{line}{space}{ticks}"


def block(text: str, language: str) -> str:
    """A block of code."""
    ticks = _ticks(text, 3)
    return f"{ticks}{language}\n{text}\n{ticks}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, of cells in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return one_line(text).replace("|", "\\|")


def _ticks(text: str, least: int) -> str:
    """More backticks than there are in a row, so that none of them ends the code."""
    return "`" * max(least, *(len(run) + 1 for run in re.findall("`+", text)), 0)
