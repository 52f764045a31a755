"""The built site needs no network: MathJax lies beside the pages, and nothing that a page loads is elsewhere."""

import importlib.util
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

_LOADING = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "embed": "src"}
_ELSEWHERE = re.compile(r"(?:https?:)?//", re.IGNORECASE)
_IN_STYLE = re.compile(r"""(?:@import\s+|url\()\s*["']?((?:https?:)?//[^"')\s]+)""", re.IGNORECASE)


class _Page(HTMLParser):
    """Collects what a browser fetches to show a page; links that a reader may follow are not among it."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self._in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag in _LOADING:
            self.loaded.append(given.get(_LOADING[tag], ""))
        if tag == "link" and given.get("rel") not in ("canonical", "author", "license"):
            self.loaded.append(given.get("href", ""))
        self.loaded += [part.split()[0] for part in given.get("srcset", "").split(",") if part.strip()]
        self.loaded += _IN_STYLE.findall(given.get("style", ""))
        self._in_style = tag == "style"

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.loaded += _IN_STYLE.findall(data)


def loaded_from_elsewhere(file: Path) -> list[str]:
    """The addresses on other machines from which a page or a style sheet loads something."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".css":
        return _IN_STYLE.findall(text)
    page = _Page()
    page.feed(text)
    return [address for address in page.loaded if _ELSEWHERE.match(address)]


def site_loads(folder: Path) -> Iterator[tuple[Path, str]]:
    """Each page or style sheet of a site with an address on another machine that it loads something from."""
    for file in sorted(folder.rglob("*")):
        if file.suffix in (".html", ".css"):
            for address in loaded_from_elsewhere(file):
                yield file.relative_to(folder), address


def _copy_mathjax(app: Any) -> None:
    """Of the 24 MB of sphinx-mathjax-offline, the 2 MB that a page loads."""
    package = importlib.util.find_spec("sphinx-mathjax-offline")
    source = Path(package.submodule_search_locations[0]) / "static" / "mathjax"
    target, fonts = Path(app.outdir) / "_static" / "mathjax", Path("output", "chtml", "fonts", "woff-v2")
    shutil.copytree(source / fonts, target / fonts, dirs_exist_ok=True)
    shutil.copy(source / "tex-chtml.js", target)


def _finish(app: Any, exception: Exception | None) -> None:
    if exception is None and app.builder.format == "html":
        from sphinx.util import logging

        _copy_mathjax(app)
        for file, address in site_loads(Path(app.outdir)):
            logging.getLogger(__name__).warning("%s loads %s: it must be part of the site", file, address)


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("build-finished", _finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
