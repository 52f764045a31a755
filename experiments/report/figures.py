"""The report's pictures of errors and weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.report import paths
from experiments.report.summary import Cell, Summary
from experiments.report.vega import INK, LINE, SOFT, TEST, TRAIN, Picture, Spec, shares_of

_ENDS = "Training {error} (circles) and test {error} (squares), {over}; between them the gap."
_NOISE = " The dotted line is the share of wrong training labels: an arm to the left of it has memorized some of them."
_CURVES = "Training and test {error} after each evaluation, {over}, without the steep start."
_HISTOGRAMS = "The sizes of all weights, on a logarithmic axis, mean over seeds. What has no place on it is written."
_LAYERS = "The share of exact zeros and the Euclidean norm of each layer's weights, {over}."


def of_errors(cells: Mapping[str, Cell], summary: Summary) -> list[Picture]:
    """Where each arm ends and how it got there, and the errors over what was varied."""
    if not cells:
        return []
    noise = _NOISE if summary.label_noise else ""
    top = _top(list(cells.values()))

    def ends(width: int) -> Spec:
        return _ends(list(cells), summary, top, width)

    def curves(width: int) -> Spec:
        return _curves(list(cells), summary, top, width)

    pictures = [
        Picture("Where each arm ends", said(_ENDS, summary) + noise, ends, _shown(cells, summary)),
        Picture("How it got there", said(_CURVES, summary), curves, f"Learning curves of {_names(cells)}."),
    ]
    return [*pictures, *paths.pictures(summary)]


def of_weights(cells: Mapping[str, Cell], summary: Summary) -> list[Picture]:
    """The sizes of the weights, and each layer's norm and zeros."""
    if not any(cell.results[0]["norms"] for cell in cells.values()):
        return []
    layers = list(dict.fromkeys(layer for cell in cells.values() for layer in cell.results[0]["norms"]))
    notes = {label: _note(cell) for label, cell in cells.items()}

    def sizes(width: int) -> Spec:
        return _sizes(notes, width)

    def of_layers(width: int) -> Spec:
        return _layers(list(cells), layers, summary, width)

    return [
        Picture("The weights", _HISTOGRAMS, sizes, " ".join(f"{label}: {note}." for label, note in notes.items())),
        Picture("Layer by layer", said(_LAYERS, summary), of_layers, f"Layers {', '.join(layers)} of {_names(cells)}."),
    ]


def said(text: str, summary: Summary) -> str:
    """The text with the study's words in it."""
    return text.format(over=summary.over_seeds, metric=summary.metric_in_words, error=summary.error)


def _names(cells: Mapping[str, Cell]) -> str:
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
    return {"field": "part", "type": "nominal", "scale": {"domain": names, "range": [TRAIN, TEST]}, "title": None}


def _folded(summary: Summary, by: Sequence[str]) -> list[Spec]:
    """From errors of runs to their mean, with one standard error, of training and test."""
    return [
        {"fold": ["train_error", "test_error"], "as": ["key", "value"]},
        {"calculate": f"(datum.key == 'train_error' ? 'training ' : 'test ') + '{summary.error}'", "as": "part"},
        *averaged("value", [*by, "part"]),
    ]


def averaged(value: str, by: Sequence[str]) -> list[Spec]:
    """From a figure of runs to its mean, with one standard error where there are several."""
    figures = [("mean", "mean"), ("stderr", "se"), ("count", "seeds")]
    return [
        {"aggregate": [{"op": op, "field": value, "as": name} for op, name in figures], "groupby": [*by]},
        {"calculate": "datum.seeds > 1 ? datum.se : 0", "as": "se"},
        {"calculate": "datum.mean - datum.se", "as": "low"},
        {"calculate": "datum.mean + datum.se", "as": "high"},
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
    style = "'.3g'" if summary.is_regression else "'.0%'"
    least = -0.01 * top
    y = {"field": "label", "type": "nominal", "sort": [*labels], "title": None, "axis": _label_axis(width)}
    x = {
        "field": "mean",
        "type": "quantitative",
        "scale": {"domain": [least, top], "nice": False},
        "axis": {**shares_of(summary), "tickCount": 8 if width > 600 else 4},
        "title": summary.error,
    }
    beyond = [
        {"calculate": "substring(datum.part, 0, 5) == 'train' ? datum.mean : null", "as": "train"},
        {"joinaggregate": [{"op": "max", "field": "train", "as": "train"}], "groupby": ["label"]},
        {"filter": "datum.most > " + str(top) + " && substring(datum.part, 0, 4) == 'test'"},
        {
            "calculate": f"'training ' + format(datum.train, {style}) + ', test ' + format(datum.mean, {style}) + ' →'",
            "as": "text",
        },
    ]
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
            "transform": beyond,
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
        "layer": marks,
    }
    each = {
        "transform": _folded(summary, ["label", "seed"])[:2],
        "mark": {"type": "tick", "thickness": 1.5, "size": 12, "clip": True},
        "encoding": {"x": {**x, "field": "value"}, "color": parts_of(summary), "opacity": {"value": OF_EACH}},
    }
    return {
        "data": {"name": "runs"},
        "params": [EACH],
        "transform": [{"filter": "datum.label != ''"}],
        "width": width,
        "height": {"step": 26},
        "autosize": {"type": "fit-x", "contains": "padding"},
        "encoding": {"y": y},
        "layer": [*([noise] if summary.label_noise else []), means, each],
    }


def _label_axis(width: int) -> Spec:
    return {"labelLimit": 240 if width > 600 else 120, "grid": False, "labelFontSize": 13 if width > 600 else 12}


def grid_of(width: int, count: int, wide: int = 4, narrow: int = 2) -> tuple[int, int]:
    """The columns of small pictures side by side, and the width of each."""
    columns = min(wide if width > 600 else narrow, max(count, 2 if width > 600 else 1))
    return columns, (width - 55) // columns - 22


def facets(labels: Sequence[str], columns: int, spec: Spec, **header: Any) -> Spec:
    """A small picture for each label."""
    limit = spec["width"]
    field = {"field": "label", "type": "nominal", "sort": [*labels], "title": None}
    return {
        "facet": {**field, "header": {"labelAnchor": "start", "labelLimit": limit, **header}},
        "columns": columns,
        "spacing": {"row": 14, "column": 22},
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
                "mark": {"type": "point", "opacity": 0, "size": 90, "clip": True},
                "encoding": {
                    "y": {**y, "field": "mean"},
                    "tooltip": tips_of(summary, ("label", "arm"), ("epoch", "epoch")),
                },
            },
        ],
    }
    single = {
        "transform": _folded(summary, [])[:2],
        "mark": {"type": "line", "strokeWidth": 0.8, "clip": True},
        "encoding": {
            "y": {**y, "field": "value"},
            "color": color,
            "detail": {"field": "seed"},
            "opacity": {"value": OF_EACH},
        },
    }
    small = {"width": each, "height": 130 if width > 600 else 100, "encoding": {"x": x}, "layer": [means, single]}
    return {"data": {"name": "history"}, "params": [EACH], **facets(labels, columns, small)}


def _note(cell: Cell) -> str:
    """The shares of a cell's weights that have no place in the picture of their sizes."""
    histograms = [result["histogram"] for result in cell.results]
    edges = histograms[0]["edges"]
    notes = {"exact zeros": cell.mean("zeros").mean}
    for side, edge in (("below", edges[0]), ("above", edges[-1])):
        notes[f"{side} {10.0**edge:g}"] = float(np.mean([histogram[side] for histogram in histograms]))
    return ", ".join(f"{100 * part:.1f} % {name}" for name, part in notes.items() if part > 5e-4) or "no exact zeros"


def _sizes(notes: Mapping[str, str], width: int) -> Spec:
    columns, each = grid_of(width, len(notes), wide=3, narrow=1)
    area = {
        "width": each,
        "height": 70,
        "transform": [{"aggregate": [{"op": "mean", "field": "share", "as": "share"}], "groupby": ["label", "size"]}],
        "mark": {"type": "area", "color": TRAIN, "opacity": 0.75, "interpolate": "monotone"},
        "encoding": {
            "x": {
                "field": "size",
                "type": "quantitative",
                "title": "size of a weight",
                "scale": {"domain": [-6, 1], "nice": False},
                "axis": {"values": list(range(-6, 2)), "labelExpr": "format(pow(10, datum.value), '~g')"},
            },
            "y": {"field": "share", "type": "quantitative", "axis": None},
        },
    }
    heads = f"[datum.label, {json.dumps(dict(notes))}[datum.label]]"
    found = facets(list(notes), columns, area, labelExpr=heads, labelFontWeight="normal")
    return {"data": {"name": "weights"}, **found, "resolve": {"scale": {"y": "independent"}}}


def _layers(labels: Sequence[str], layers: Sequence[str], summary: Summary, width: int) -> Spec:
    is_wide, named = width > 600, min(240, 7.5 * max(map(len, labels)))
    each = int((width - named) / 2 - 15) if is_wide else width - min(120, int(named)) - 10

    def heat(field: str, title: str, style: str, is_first: bool) -> Spec:
        axis = _label_axis(width) if is_first or not is_wide else None
        return {
            "width": each,
            "height": {"step": 24},
            "title": title,
            "transform": averaged(field, ["label", "layer"]),
            "encoding": {
                "x": {
                    "field": "layer",
                    "type": "nominal",
                    "sort": [*layers],
                    "title": None,
                    "axis": {
                        "labelAngle": 0 if len(layers) <= (6 if is_wide else 3) else -40,
                        "ticks": False,
                        "domain": False,
                    },
                },
                "y": {"field": "label", "type": "nominal", "sort": [*labels], "title": None, "axis": axis},
                "tooltip": [
                    {"field": "label", "title": "arm"},
                    {"field": "layer", "title": "layer"},
                    {"field": "mean", "title": title, "format": style},
                    {"field": "se", "title": "standard error", "format": style},
                ],
            },
            "layer": [
                {
                    "mark": {"type": "rect", "color": TRAIN, "stroke": LINE, "strokeWidth": 0.5},
                    "encoding": {
                        "fillOpacity": {
                            "field": "mean",
                            "type": "quantitative",
                            "scale": {"domainMin": 0, "range": [0, 0.55]},
                            "legend": None,
                        }
                    },
                },
                *(
                    [{"mark": {"type": "text", "color": INK}, "encoding": {"text": {"field": "mean", "format": style}}}]
                    if each / max(len(layers), 1) > 40
                    else []
                ),
            ],
        }

    panels = [heat("zeros", "exact zeros", ".1%", True), heat("norm", "norm", ".1f", False)]
    return {
        "data": {"name": "layers"},
        "concat": panels,
        "columns": 2 if is_wide else 1,
        "spacing": 20,
        "resolve": {"scale": {"fillOpacity": "independent"}},
    }


def _top(cells: Sequence[Cell]) -> float:
    """The largest error on the axes, so that one arm that under-fits does not flatten all others."""
    middle = float(np.median([cell.mean("test_error").mean for cell in cells]))
    if not any(cell.is_regression for cell in cells):
        return min(1.0, 3 * middle + 0.02)
    largest = max(cell.mean(key).mean for cell in cells for key in ("train_error", "test_error"))
    top = min(3 * middle, 1.15 * largest)
    return top if top and math.isfinite(top) else 1.0
