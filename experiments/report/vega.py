"""Pictures by Vega-Lite: one specification makes the SVG of a page on paper and, with script, the interactive view.

A specification is drawn at two widths, for a wide and for a narrow page. Its colors are the variables of the page's
style, so that it follows the reader's color scheme.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from html import escape
from typing import Any, NamedTuple, Self

from markupsafe import Markup

from .datasets import Rows
from .summary import Summary

Spec = dict[str, Any]

WIDE, NARROW = 1040, 340  # the widths in pixels that pictures are drawn for
TRAIN, TEST, VALID = "var(--train)", "var(--test)", "var(--valid)"
INK, SOFT, LINE = "var(--ink)", "var(--soft)", "var(--line)"

LIVE = "live"  # begins the name of a layer that is not seen without script; each name is there once

_FONT = "Arial, Helvetica, sans-serif"
_CONFIG: Spec = {
    "font": _FONT,
    "view": {"stroke": None},
    "axis": {
        "domainColor": SOFT,
        "gridColor": LINE,
        "tickColor": SOFT,
        "labelColor": INK,
        "titleColor": INK,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelLimit": 220,
        "labelOverlap": True,
        "labelSeparation": 5,
    },
    "axisY": {"domain": False, "ticks": False},
    "header": {"labelColor": INK, "labelFontSize": 13, "labelFontWeight": "bold", "title": None},
    "title": {"color": INK, "fontSize": 13, "anchor": "start"},
    "legend": {"labelColor": INK, "titleColor": INK, "labelFontSize": 12, "orient": "top", "symbolStrokeWidth": 2},
    "text": {"color": INK, "fontSize": 12},
    "rule": {"color": SOFT},
}


class Picture(NamedTuple):
    """A figure with its heading and an explanation.

    Args:
        title: the heading.
        text: explains it.
        make: the specification for a width; it names its data sets.
        shows: what is in the picture, for those who do not see it.
    """

    title: str
    text: str
    make: Callable[[int], Spec]
    shows: str


class Drawn(NamedTuple):
    """A picture as a page holds it."""

    title: str
    text: str
    shows: str
    wide: Markup
    narrow: Markup
    specs: str  # JSON: the specifications of both widths


def shares_of(summary: Summary) -> Spec:
    """The axis of errors: in percent, if they are shares; with as many digits as its steps need."""
    return {"format": ".6~g"} if summary.is_regression else {"format": "~%"}


_DRAW = """
import json, sys, vl_convert
for line in sys.stdin.buffer:
    sys.stdout.buffer.write(json.dumps(vl_convert.vegalite_to_svg(json.loads(line))).encode() + b"\\n")
    sys.stdout.flush()
"""


class Pen:
    """Draws in another process, with which the 300 MB end that drawing takes."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _DRAW], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # it ends where its input does

    def svg(self, spec: Spec) -> str:
        """The picture of a specification that holds its data."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(OSError):  # where no process can be started, it is drawn in this one
            self._process.stdin.write(json.dumps(spec).encode() + b"\n")
            self._process.stdin.flush()
            if line := self._process.stdout.readline():
                return str(json.loads(line))
        import vl_convert

        return str(vl_convert.vegalite_to_svg(spec))


def drawn(picture: Picture, data: Mapping[str, Rows], number: int, pen: Pen) -> Drawn:
    """Draws a picture; the number tells it from the others of the page."""
    specs = {name: {**picture.make(width), "config": _CONFIG} for name, width in (("wide", WIDE), ("narrow", NARROW))}
    wide, narrow = (_svg(spec, data, f"p{number}{name}-", picture, pen) for name, spec in specs.items())
    text = json.dumps(specs, separators=(",", ":")).replace("<", "\\u003c")
    return Drawn(picture.title, picture.text, picture.shows, wide, narrow, text)


def _svg(spec: Spec, data: Mapping[str, Rows], prefix: str, picture: Picture, pen: Pen) -> Markup:
    sets = {name: [_drawn_part(row) for row in data[name] if row.get("label") != ""] for name in _names_in(spec)}
    text = pen.svg({**_still(spec), "datasets": sets, "background": "transparent"})
    text = lean(text[text.index("<svg") :])
    own = {name: f"{prefix}{number}" for number, name in enumerate(dict.fromkeys(re.findall(r'\bid="([^"]+)"', text)))}
    text = re.sub(r'(?<=\bid=")[^"]+|(?<=url\(#)[^)]+', lambda found: own[found[0]], text)  # one on the page
    name = escape(f"{picture.title}. {picture.shows}")
    return Markup(re.sub("^<svg ", f'<svg role="img" aria-label="{name}" ', text))


def lean(text: str) -> str:
    """An SVG without the names of its parts, since the whole has one, and with places to a hundredth of a pixel."""
    return re.sub(r"<[^<>]+>", _shortened, re.sub(r' (?:role|aria-[a-z]+)="[^"]*"', "", text))


def _drawn_part(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without the losses, which no picture shows."""
    return {key: value for key, value in row.items() if not key.endswith("_loss")}


def _shortened(tag: re.Match[str]) -> str:
    """A tag with its places to a hundredth of a pixel."""
    return re.sub(r"(?<=\d\.\d{2})\d+", "", tag[0])


def _still(spec: Any) -> Any:
    """The specification without the layers that only script brings to light."""
    if isinstance(spec, Mapping):
        return {key: _still(value) for key, value in spec.items()}
    if isinstance(spec, list):
        return [_still(one) for one in spec if not (isinstance(one, Mapping) and str(one.get("name")).startswith(LIVE))]
    return spec


def _names_in(spec: Any) -> set[str]:
    """The data sets that a specification names, at any depth."""
    if isinstance(spec, Mapping):
        own = {spec["data"]["name"]} if "name" in spec.get("data", {}) else set()
        return own.union(*map(_names_in, spec.values()))
    return set().union(*map(_names_in, spec)) if isinstance(spec, list) else set()


_BUNDLE = """
import sys, vl_convert as v
print(f"Vega {v.get_vega_version()}, Vega-Lite {v.get_vegalite_versions()[-1]}, Vega-Embed", flush=True)
sys.stdout.buffer.write(v.javascript_bundle(sys.argv[1]).encode())
"""
_WANTED = "window.vegaEmbed=vegaEmbed;"


@cache
def begin_bundle() -> subprocess.Popen[bytes]:
    """Begins to make the script in another process, which takes as long as all pictures do."""
    return subprocess.Popen([sys.executable, "-c", _BUNDLE, _WANTED], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


@cache
def bundle() -> Markup:
    """Vega, Vega-Lite and Vega-Embed, as the script of a page."""
    made, _ = begin_bundle().communicate()
    names, _, script = made.decode().partition("\n")
    license = "BSD-3-Clause, University of Washington Interactive Data Lab and contributors"
    return Markup(f"/* {names}: {license} */\n" + script.replace("</script", "<\\/script"))
