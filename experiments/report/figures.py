"""The report's pictures of errors and weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import paths
from .cells import Cell
from .summary import Summary
from .vega import LINE, LIVE, SOFT, TEST, TRAIN, Picture, Spec, shares_of

_ENDS = "Training {error} (circles) and test {error} (squares), {over}; between them the gap."
_NOISE = " The dotted line is the share of wrong training labels: an arm to the left of it has memorized some of them."
_CURVES = "Training and test {error} after each evaluation, {over}, without the steep start."


def of_errors(cells: Mapping[str, Cell], summary: Summary) -> list[Picture]:
    """Where each arm ends and how it got there, and the errors over what was varied."""
    if not cells:
        return []
    noise = _NOISE if summary.label_noise else ""
    end, top = _tops(list(cells.values()), summary.label_noise)

    def ends(width: int) -> Spec:
        return _ends(list(cells), summary, end, width)

    def curves(width: int) -> Spec:
        return _curves(list(cells), summary, top, width)

    pictures = [
        Picture("Where each arm ends", said(_ENDS, summary) + noise, ends, _shown(cells, summary)),
        Picture("How it got there", said(_CURVES, summary), curves, f"Learning curves of {names_of(cells)}."),
    ]
    return [*pictures, *paths.pictures(summary)]


def said(text: str, summary: Summary) -> str:
    """The text with the study's words in it."""
    return text.format(over=summary.over_seeds, metric=summary.metric_in_words, error=summary.error)


def names_of(cells: Mapping[str, Cell]) -> str:
    return ", ".join(list(cells)[:12]) + (", ..." if len(cells) > 12 else "")


def _shown(cells: Mapping[str, Cell], summary: Summary) -> str:
    each = []
    for label, cell in list(cells.items())[:12]:
        train, test = (cell.unit.mean(cell.mean(key)) for key in ("train_error", "test_error"))
        each.append(f"{label}: {train} and {test}")
    unit = "" if summary.is_regression else ", in percent"
    return f"Training and test {summary.error}{unit}: {'; '.join(each)}. The first table has the same figures."


def parts_of(summary: Summary) -> Spec:
    """The encoding of training and test errors by color."""
    names = [f"training {summary.error}", f"test {summary.error}"]
    return {
        "field": "part",
        "type": "nominal",
        "scale": {"domain": names, "range": [TRAIN, TEST]},
        "title": None,
        "legend": {"symbolOpacity": 1, "symbolType": "square"},
    }


def _folded(summary: Summary, by: Sequence[str]) -> list[Spec]:
    """From errors of runs to their mean, with one standard error, of training and test."""
    return [
        {"fold": ["train_error", "test_error"], "as": ["key", "value"]},
        {"calculate": f"(datum.key == 'train_error' ? 'training ' : 'test ') + '{summary.error}'", "as": "part"},
        *averaged("value", [*by, "part", "key"]),
    ]


def averaged(value: str, by: Sequence[str], mean: str = "mean") -> list[Spec]:
    """From a figure of runs to its mean, with one standard error where there are several.

    Pictures of one data set side by side need another name each for their means: Vega-Lite takes them together.
    """
    figures = [("mean", mean), ("stderr", "se"), ("count", "seeds")]
    return [
        {"aggregate": [{"op": op, "field": value, "as": name} for op, name in figures], "groupby": [*by]},
        {"calculate": "datum.seeds > 1 ? datum.se : 0", "as": "se"},
        {"calculate": f"datum.{mean} - datum.se", "as": "low"},
        {"calculate": f"datum.{mean} + datum.se", "as": "high"},
    ]


def tips_of(summary: Summary, *fields: tuple[str, str]) -> list[Spec]:
    """What is said of a mean, below the given fields and their titles."""
    style = ".3~%" if not summary.is_regression else ".4~g"
    named = [{"field": field, "title": title} for field, title in fields]
    return [
        *named,
        {"field": "part", "title": "of"},
        {"field": "mean", "title": "mean", "format": style},
        {"field": "se", "title": "standard error", "format": style},
        {"field": "seeds", "title": "seeds"},
    ]


EACH: Spec = {"name": "each", "value": False}  # whether single seeds are drawn, too
OF_EACH = {"expr": "each ? 0.55 : 0"}


def _ends(labels: Sequence[str], summary: Summary, top: float, width: int) -> Spec:
    least = -0.01 * top
    y = {"field": "label", "type": "nominal", "sort": [*labels], "title": None, "axis": label_axis(width)}
    x = {
        "field": "mean",
        "type": "quantitative",
        "scale": {"domain": [least, top], "nice": False},
        "axis": {**shares_of(summary), "tickCount": 8 if width > 600 else 4},
        "title": summary.error,
    }
    within = {"filter": f"datum.most <= {top}"}
    marks: list[Spec] = [
        {
            "transform": [within],
            "mark": {"type": "line", "strokeWidth": 5, "strokeCap": "round", "color": LINE},
            "encoding": {"x": x, "detail": {"field": "label"}},
        },
        {
            "transform": [within],
            "mark": {"type": "rule", "strokeWidth": 1.6},
            "encoding": {"x": {**x, "field": "low"}, "x2": {"field": "high"}, "color": parts_of(summary)},
        },
        {
            "transform": [within],
            "mark": {"type": "point", "filled": True, "opacity": 1, "size": 75},
            "encoding": {
                "x": x,
                "color": parts_of(summary),
                "shape": {
                    "field": "part",
                    "type": "nominal",
                    "title": None,
                    "scale": {"domain": parts_of(summary)["scale"]["domain"], "range": ["circle", "square"]},
                },
                "tooltip": tips_of(summary, ("label", "arm")),
            },
        },
        {
            "transform": _beyond(summary, top),
            "mark": {"type": "text", "align": "right", "dx": -4, "color": TEST},
            "encoding": {"x": {"datum": top}, "text": {"field": "text"}},
        },
    ]
    line = {"type": "rule", "strokeDash": [2, 3], "color": SOFT, "clip": True}
    noise = {"data": {"values": [{}]}, "mark": line, "encoding": {"x": {"datum": summary.label_noise}}}
    means = {
        "transform": [
            *_folded(summary, ["label"]),
            {"joinaggregate": [{"op": "max", "field": "mean", "as": "most"}], "groupby": ["label"]},
        ],
        "encoding": {"y": y},
        "layer": marks,
    }
    each = {
        "name": f"{LIVE} seeds",
        "transform": _folded(summary, ["label", "seed"])[:2],
        "mark": {"type": "tick", "thickness": 1.5, "size": 12, "clip": True},
        "encoding": {
            "x": {**x, "field": "value"},
            "y": y,
            "color": parts_of(summary),
            "opacity": {"value": OF_EACH},
        },
    }
    return {
        "data": {"name": "runs"},
        "params": [EACH],
        "transform": [{"filter": {"field": "label", "oneOf": [*labels]}}],
        "width": width - label_width(labels, width),
        "height": {"step": 26},
        "layer": [*([noise] if summary.label_noise else []), means, each],
    }


def _beyond(summary: Summary, top: float) -> list[Spec]:
    """What is written of an arm whose errors lie beyond the axis."""
    style = "'.3g'" if summary.is_regression else "'.0%'"
    both = f"'training ' + format(datum.train, {style}) + ', test ' + format(datum.mean, {style}) + ' →'"
    return [
        {"calculate": "datum.key == 'train_error' ? datum.mean : null", "as": "train"},
        {"joinaggregate": [{"op": "max", "field": "train", "as": "train"}], "groupby": ["label"]},
        {"filter": f"datum.most > {top} && datum.key == 'test_error'"},
        {"calculate": both, "as": "text"},
    ]


def label_axis(width: int) -> Spec:
    return {"labelLimit": 240 if width > 600 else 110, "grid": False, "labelFontSize": 13 if width > 600 else 12}


def label_width(labels: Sequence[str], width: int) -> int:
    """What the labels beside a picture take, about."""
    return int(min(250 if width > 600 else 115, 7.2 * max(map(len, labels)) + 10)) + 12


def grid_of(width: int, count: int, wide: int = 4, narrow: int = 2, left: int = 40) -> tuple[int, int]:
    """The columns of small pictures side by side, and the width of each."""
    columns = min(wide if width > 600 else narrow, max(count, 2 if width > 600 else 1))
    return columns, (width - left + 22) // columns - 22


def facets(labels: Sequence[str], columns: int, spec: Spec, **header: Any) -> Spec:
    """A small picture for each label."""
    limit = spec["width"]
    field = {"field": "label", "type": "nominal", "sort": [*labels], "title": None}
    return {
        "facet": {**field, "header": {"labelAnchor": "start", "labelLimit": limit, **header}},
        "columns": columns,
        "spacing": {"row": 14, "column": 22},
        "resolve": {"axis": {"x": "independent"}},
        "spec": spec,
    }


def _curves(labels: Sequence[str], summary: Summary, top: float, width: int) -> Spec:
    columns, each = grid_of(width, len(labels))
    x = {
        "field": "epoch",
        "type": "quantitative",
        "scale": {"nice": False, "zero": False},
        "axis": {"format": "d", "tickMinStep": 1, "tickCount": 4 if width > 600 else 3, "grid": False},
    }
    y = {
        "type": "quantitative",
        "scale": {"domain": [0, top]},
        "axis": {**shares_of(summary), "tickCount": 4},
        "title": None,
    }
    whole = [  # where seeds stop at different epochs, up to the first of them
        {"joinaggregate": [{"op": "max", "field": "seeds", "as": "all"}], "groupby": ["label"]},
        {"filter": "datum.seeds == datum.all"},
    ]
    color = parts_of(summary)
    means: Spec = {
        "transform": [*_folded(summary, ["label", "epoch"]), *whole],
        "layer": [
            {
                "mark": {"type": "area", "opacity": 0.2, "clip": True},
                "encoding": {"y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": color},
            },
            {
                "mark": {"type": "line", "strokeWidth": 1.8, "clip": True},
                "encoding": {"y": {**y, "field": "mean"}, "color": color},
            },
            {
                "name": f"{LIVE} points",
                "mark": {"type": "point", "opacity": 0, "size": 90, "clip": True},
                "encoding": {
                    "y": {**y, "field": "mean"},
                    "tooltip": tips_of(summary, ("label", "arm"), ("epoch", "epoch")),
                },
            },
        ],
    }
    single = {
        "name": f"{LIVE} seeds",
        "transform": _folded(summary, [])[:2],
        "mark": {"type": "line", "strokeWidth": 0.8, "clip": True},
        "encoding": {
            "y": {**y, "field": "value"},
            "color": color,
            "detail": {"field": "seed"},
            "opacity": {"value": OF_EACH},
        },
    }
    last = [
        {"joinaggregate": [{"op": "max", "field": "epoch", "as": "last"}], "groupby": ["label"]},
        {"filter": "datum.epoch == datum.last"},
        {"joinaggregate": [{"op": "max", "field": "mean", "as": "most"}], "groupby": ["label"]},
    ]
    lines = {"type": "text", "color": TEST, "lineBreak": ", ", "align": "center"}
    beyond = {
        "transform": [*_folded(summary, ["label", "epoch"]), *whole, *last, *_beyond(summary, top)],
        "mark": lines,
        "encoding": {"x": {"value": each // 2}, "y": {"value": 40}, "text": {"field": "text"}},
    }
    small = {
        "width": each,
        "height": 130 if width > 600 else 100,
        "layer": [{"encoding": {"x": x}, "layer": [means, single]}, beyond],
    }
    return {"data": {"name": "history"}, "params": [EACH], **facets(labels, columns, small)}


def _tops(cells: Sequence[Cell], noise: float) -> tuple[float, float]:
    """The largest errors on the axes of where arms end and of how they got there.

    One arm that under-fits does not flatten all others.
    """
    middle = float(np.median([cell.mean("test_error").mean for cell in cells]))
    largest = max(cell.mean(key).mean for cell in cells for key in ("train_error", "test_error"))
    if any(cell.is_regression for cell in cells):
        top = min(3 * middle, 1.15 * largest)
        top = top if top and math.isfinite(top) else 1.0
        return top, top
    top = min(1.0, 3 * middle + 0.02)
    return min(top, max(1.1 * largest, 1.1 * noise, 0.001)), top
