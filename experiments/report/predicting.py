"""The report's pictures of what models predict: how sure they are, what they confuse, how far off they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .cells import Cell
from .datasets import MOST_ARMS, Rows
from .figures import facets, grid_of
from .vega import INK, LINE, SOFT, TEST, TRAIN, VALID, Picture, Spec

MOST_CLASSES = 20  # in a matrix; of more classes the most frequent errors are listed alone
_RELIABILITY = (
    "How often predictions of the test {noun} are right, by how sure they are, all seeds together. On the diagonal "
    "they are right as often as they claim; bars below it are too sure. ECE is the expected calibration error, the "
    "mean distance from the diagonal, by 15 bins (Guo et al., 2017)."
)
_CONFUSION = "How often test {noun} of a class (rows) are taken for another one (columns), summed over seeds."
_SCATTER = "What each arm predicts for test examples, against what is true, in units of the target."


def pictures(cells: Mapping[str, Cell], classes: Sequence[str], data: Mapping[str, Rows], noun: str) -> list[Picture]:
    """The pictures for which the records hold predictions."""
    found = []
    if data["reliability"]:
        labels = _labels(data["reliability"])

        def reliability(width: int) -> Spec:
            return _reliability(labels, width)

        errors = "; ".join(f"{label}: {100 * _ece(data['reliability'], label):.1f} %" for label in labels[:MOST_ARMS])
        text = _RELIABILITY.format(noun=noun)
        found.append(Picture("Calibration", text, reliability, f"Expected calibration errors: {errors}."))
    if data["confusion"] and len(classes) <= MOST_CLASSES:
        panels = _labels(data["confusion"])

        def confusion(width: int) -> Spec:
            return _confusion(panels, classes, width)

        text = _CONFUSION.format(noun=noun)
        shown = (
            f"Classes {', '.join(classes)} of {', '.join(panels)}. The list of errors below has the largest numbers."
        )
        found.append(Picture("Confusion", text, confusion, shown))
    if data["numbers"]:
        names = _labels(data["numbers"])

        def scatter(width: int) -> Spec:
            return _scatter(names, data["numbers"], width)

        found.append(Picture("Predicted and true", _SCATTER, scatter, f"Test examples of {', '.join(names)}."))
    return found


def _labels(rows: Rows) -> list[str]:
    return list(dict.fromkeys(row["label"] for row in rows))[:MOST_ARMS]


def _ece(rows: Rows, label: str) -> float:
    """The mean over seeds."""
    errors = {row["seed"]: row["ece"] for row in rows if row["label"] == label}
    return float(sum(errors.values()) / len(errors))


def most_confused(rows: Rows, most: int = 10) -> dict[str, list[tuple[str, str, int]]]:
    """For each arm the most frequent errors: the true class, what it is taken for, how often."""
    found: dict[str, list[tuple[str, str, int]]] = {}
    for label in _labels(rows):
        counts: dict[tuple[str, str], int] = {}
        for row in rows:
            if row["label"] == label and row["true"] != row["predicted"]:
                pair = row["true"], row["predicted"]
                counts[pair] = counts.get(pair, 0) + row["times"]
        order = sorted(counts, key=lambda pair: (-counts[pair], pair))
        found[label] = [(*pair, counts[pair]) for pair in order[:most]]
    return found


def _of(labels: Sequence[str]) -> list[Spec]:
    return [{"filter": {"field": "label", "oneOf": [*labels]}}]


def _reliability(labels: Sequence[str], width: int) -> Spec:
    columns, each = grid_of(width, len(labels), left=64)
    share = {"type": "quantitative", "scale": {"domain": [0, 1]}}
    high = {"type": "quantitative", "scale": {"domain": [0, 1.2]}}  # above 1 there is place for text
    axis = {"format": "~%", "values": [0, 0.5, 1]}
    bars = {
        "transform": [
            {
                "aggregate": [{"op": "sum", "field": name, "as": name} for name in ("count", "correct", "confidence")],
                "groupby": ["label", "low", "high"],
            },
            {"filter": "datum.count > 0"},
            {"calculate": "datum.correct / datum.count", "as": "accuracy"},
            {"calculate": "datum.confidence / datum.count", "as": "sure"},
        ],
        "mark": {"type": "bar", "color": TRAIN, "binSpacing": 1, "opacity": 0.85},
        "encoding": {
            "x": {"field": "low", "bin": "binned", **share, "title": "how sure", "axis": axis},
            "x2": {"field": "high"},
            "y": {"field": "accuracy", **high, "title": "how often right", "axis": axis},
            "tooltip": [
                {"field": "label", "title": "arm"},
                {"field": "sure", "title": "mean confidence", "format": ".1%"},
                {"field": "accuracy", "title": "right", "format": ".1%"},
                {"field": "count", "title": "predictions"},
            ],
        },
    }
    ends = {"x": {"datum": 0}, "y": {"datum": 0}, "x2": {"datum": 1}, "y2": {"datum": 1}}
    diagonal = {"data": {"values": [{}]}, "mark": {"type": "rule", "color": TEST, "strokeWidth": 1.3}, "encoding": ends}
    error = {
        "transform": [
            {"aggregate": [{"op": "mean", "field": "ece", "as": "ece"}], "groupby": ["label"]},
            {"calculate": "'ECE ' + format(datum.ece, '.1%')", "as": "text"},
        ],
        "mark": {"type": "text", "align": "left", "baseline": "top", "dx": 3},
        "encoding": {"x": {"datum": 0}, "y": {"datum": 1.2}, "text": {"field": "text"}},
    }
    small = {"width": each, "height": each if width < 600 else 150, "layer": [bars, diagonal, error]}
    return {"data": {"name": "reliability"}, "transform": _of(labels), **facets(labels, columns, small)}


def _confusion(labels: Sequence[str], classes: Sequence[str], width: int) -> Spec:
    most = max(map(len, classes))
    columns, each = grid_of(width, len(labels), wide=3, narrow=1, left=30 + min(90, 7 * most))
    place = {"type": "nominal", "sort": [*classes]}
    axis = {"ticks": False, "domain": False, "labelFontSize": 11, "labelOverlap": False, "labelLimit": 90}
    rects = {
        "mark": {"type": "rect", "strokeWidth": 0.5, "stroke": LINE},
        "encoding": {
            "color": {"condition": {"test": "datum.true == datum.predicted", "value": VALID}, "value": TEST},
            "fillOpacity": {
                "field": "of_row",
                "type": "quantitative",
                "scale": {"type": "sqrt", "domain": [0, 1], "range": [0.03, 0.36]},
                "legend": None,
            },
            "tooltip": [
                {"field": "label", "title": "arm"},
                {"field": "true", "title": "true"},
                {"field": "predicted", "title": "taken for"},
                {"field": "times", "title": "times"},
                {"field": "of_row", "title": "of the class", "format": ".1%"},
            ],
        },
    }
    text = {"mark": {"type": "text", "fontSize": 10, "color": INK}, "encoding": {"text": {"field": "times"}}}
    small = {
        "width": each,
        "height": max(90, min(each, 21 * len(classes))),
        "view": {"stroke": LINE},
        "transform": [
            {"aggregate": [{"op": "sum", "field": "times", "as": "times"}], "groupby": ["label", "true", "predicted"]},
            {"joinaggregate": [{"op": "sum", "field": "times", "as": "all"}], "groupby": ["label", "true"]},
            {"calculate": "datum.times / datum.all", "as": "of_row"},
        ],
        "encoding": {
            "x": {
                "field": "predicted",
                **place,
                "title": "taken for",
                "axis": {**axis, "labelAngle": 0 if most < 4 else -40},
            },
            "y": {"field": "true", **place, "title": "true", "axis": axis},
        },
        "layer": [rects, *([text] if each / len(classes) > 17 else [])],
    }
    return {"data": {"name": "confusion"}, "transform": _of(labels), **facets(labels, columns, small)}


def _scatter(labels: Sequence[str], rows: Rows, width: int) -> Spec:
    columns, each = grid_of(width, len(labels), wide=3, left=64)
    true = [row["true"] for row in rows]
    low, high = min(true), max(true)
    x = {"field": "true", "type": "quantitative", "title": "true", "scale": {"zero": False}, "axis": {"tickCount": 4}}
    points = {
        "mark": {"type": "point", "filled": True, "size": 18, "opacity": 0.5, "color": TRAIN},
        "encoding": {
            "x": x,
            "y": {**x, "field": "predicted", "title": "predicted", "axis": {"tickCount": 4, "grid": True}},
            "tooltip": [
                {"field": "label", "title": "arm"},
                {"field": "seed"},
                {"field": "true", "format": ".4~g"},
                {"field": "predicted", "format": ".4~g"},
            ],
        },
    }
    ends = {"x": {"datum": low}, "y": {"datum": low}, "x2": {"datum": high}, "y2": {"datum": high}}
    diagonal = {"data": {"values": [{}]}, "mark": {"type": "rule", "color": SOFT, "strokeWidth": 1.2}, "encoding": ends}
    small = {"width": each, "height": min(each, 190), "layer": [diagonal, points]}
    return {"data": {"name": "numbers"}, "transform": _of(labels), **facets(labels, columns, small)}
