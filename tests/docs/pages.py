"""The pages of the documentation, and the code blocks in them."""

import re
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parents[2]
_BUILT = {"_build", "gallery_built"}  # folders that the build writes
PAGES = [
    ROOT / "README.md",
    *sorted(page for page in (ROOT / "docs").rglob("*.md") if _BUILT.isdisjoint(page.relative_to(ROOT).parts)),
]

_FENCE = re.compile(r" *(`{3,}|~{3,})(.*)")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, or the directive that it is, the lines in it, and where its fences are."""

    language: str
    text: str
    page: Path
    line: int
    end: int

    @property
    def place(self) -> str:
        return f"{name_of(self.page)}:{self.line}"


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    """The page's fenced blocks in order."""
    found: list[Block] = []
    fence, language, start, lines = "", "", 0, []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        matched = _FENCE.match(line)
        if not fence and matched:
            fence, language, start, lines = matched[1], matched[2].strip(), number, []
        elif fence and matched and matched[1].startswith(fence) and not matched[2].strip():
            found.append(Block(language, dedent("".join(f"{line}\n" for line in lines)), page, start, number))
            fence = ""
        else:
            lines.append(line)
    assert not fence, f"{name_of(page)}:{start}: the block has no end"
    return found
