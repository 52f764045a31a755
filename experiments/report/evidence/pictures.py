"""A picture for each measure, drawn from a record alone: an SVG on a white ground, with one standard error."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from ..vega import Pen, Spec, lean
from .found import Picture, Scalar

_INK, _SOFT, _LINE = "#1e293b", "#64748b", "#e2e8f0"
_COLORS = ["#c2410c", "#64748b", "#2563a8", "#15803d", "#a21caf", "#b45309", "#0891b2", "#111827"]
_CONFIG: Spec = {
    "font": "Arial, Helvetica, sans-serif",
    "background": "white",
    "padding": {"left": 28, "top": 8, "right": 16, "bottom": 8},  # browsers may have wider letters than the renderer
    "view": {"stroke": None},
    "axis": {
        "domainColor": _SOFT,
        "gridColor": _LINE,
        "tickColor": _SOFT,
        "labelColor": _INK,
        "titleColor": _INK,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelLimit": 260,
    },
    "title": {"color": _INK, "fontSize": 13, "anchor": "start"},
    "legend": {
        "labelColor": _INK,
        "titleColor": _INK,
        "labelFontSize": 12,
        "titleFontWeight": "normal",
        "columnPadding": 24,
    },
}
_BAR = "M-0.2,-1.4L0.2,-1.4L0.2,1.4L-0.2,1.4Z"  # an upright one, as a symbol
_Rows = Sequence[Mapping[str, Scalar]]


def drawn(picture: Picture, pen: Pen) -> str:
    """The SVG of a picture."""
    spec = _BY_KIND[picture.kind](picture)
    return lean(pen.svg({**spec, "config": _CONFIG}))


def _names(rows: _Rows, key: str) -> list[Any]:
    return list(dict.fromkeys(row[key] for row in rows))


def _peak(picture: Picture) -> Spec:
    rows, at = picture.rows, picture.marks["at"]
    rules = _names(rows, "rule")
    best = rules[1]  # a broad line below those of the rules, which should lie on it
    others = [rule for rule in rules if rule != best]
    colors = {best: "#cbd5e1", **{rule: _COLORS[i % len(_COLORS)] for i, rule in enumerate(others)}}
    x = {
        "field": "x",
        "type": "quantitative",
        "title": picture.x,
        "axis": {"tickCount": 8},
        "scale": {"domain": [0, max(float(row["x"] or 0) for row in rows)]},
    }
    error = {"field": "error", "type": "quantitative", "title": "test error, %", "scale": {"zero": True}}
    scale = {"domain": rules, "range": [colors[rule] for rule in rules]}
    legend = {"orient": "top", "columns": 3, "labelLimit": 260, "symbolOpacity": 1, "symbolSize": 90}
    color = {"field": "rule", "type": "nominal", "title": None, "scale": scale, "legend": legend}
    shapes = ["circle", "circle", "square", "triangle-up", "cross", "diamond"]
    shape = {
        "field": "rule",
        "type": "nominal",
        "title": None,
        "scale": {"domain": rules, "range": (shapes * 2)[: len(rules)]},
        "legend": legend,
    }
    ends = [
        {"calculate": "datum.error - datum.se", "as": "low"},
        {"calculate": "datum.error + datum.se", "as": "high"},
    ]
    layers: list[Spec] = [
        {
            "data": {"values": [{"at": at}]},
            "mark": {"type": "rule", "color": _SOFT, "strokeDash": [4, 4]},
            "encoding": {"x": {"field": "at", "type": "quantitative"}},
        },
        {
            "transform": [{"filter": {"field": "rule", "equal": best}}],
            "mark": {"type": "line", "strokeWidth": 9, "strokeCap": "round"},
            "encoding": {"x": x, "y": error, "color": color},
        },
        {
            "transform": [{"filter": {"field": "rule", "oneOf": others}}],
            "mark": {"type": "line", "strokeWidth": 1.6},
            "encoding": {"x": x, "y": error, "color": color},
        },
        {
            "transform": [{"filter": {"field": "rule", "oneOf": others}}, *ends],
            "mark": {"type": "rule", "strokeWidth": 1.2},
            "encoding": {"x": x, "y": {**error, "field": "low"}, "y2": {"field": "high"}, "color": color},
        },
        {
            "transform": [{"filter": {"field": "rule", "oneOf": others}}],
            "mark": {"type": "point", "filled": True, "size": 50, "opacity": 1},
            "encoding": {"x": x, "y": error, "color": color, "shape": shape},
        },
    ]
    return {"data": {"values": [*rows]}, "width": 620, "height": 320, "layer": layers}


def _onset(picture: Picture) -> Spec:
    rows, marks = picture.rows, picture.marks
    arms = _names(rows, "arm")
    color = {
        "field": "arm",
        "type": "nominal",
        "sort": arms,
        "title": None,
        "scale": {"domain": arms, "range": (_COLORS * 3)[: len(arms)]},
        "legend": {"orient": "top", "columns": 3, "symbolType": "stroke", "symbolStrokeWidth": 3},
    }
    dash = {
        "field": "part",
        "type": "nominal",
        "title": None,
        "scale": {"domain": ["test", "training"], "range": [[1, 0], [2, 3]]},
        "legend": {"orient": "top"},
    }

    def panel(field: str, title: str, shown: _Rows) -> Spec:
        x = {
            "field": field,
            "type": "quantitative",
            "scale": {"type": "log"},
            "title": title,
            "axis": {"format": ",~g", "values": _powers([float(row[field] or 1) for row in shown])},
        }
        y = {
            "field": "accuracy",
            "type": "quantitative",
            "title": "accuracy, %",
            "scale": {"domain": [0, 100]},
        }
        return {
            "width": 310,
            "height": 280,
            "layer": [
                {
                    "data": {"values": [{"level": marks["level"]}]},
                    "mark": {"type": "rule", "color": _SOFT, "strokeDash": [6, 3]},
                    "encoding": {"y": {"field": "level", "type": "quantitative"}},
                },
                {
                    "data": {"values": [*shown]},
                    "mark": {"type": "line", "strokeWidth": 1.8},
                    "encoding": {"x": x, "y": y, "color": color, "strokeDash": dash},
                },
            ],
        }

    decayed = [row for row in rows if row["product"] and row["part"] == "test"]
    panels = [panel("step", "steps", [row for row in rows if row["step"]])]
    if decayed:
        panels.append(panel("product", "steps x weight decay", decayed))
    return {"hconcat": panels, "spacing": 30}


def _powers(values: Sequence[float]) -> list[float]:
    """The powers of 10 around the values."""
    ends = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return [10.0**power for power in range(ends[0], ends[1] + 1)]


def _slope(picture: Picture) -> Spec:
    rows, marks = picture.rows, picture.marks
    rules = _names(rows, "rule")
    losses = [float(row["loss"] or 0.0) for row in rows if row["loss"] is not None]
    least = min(losses)
    color = {
        "field": "loss",
        "type": "quantitative",
        "title": "validation loss",
        "scale": {"scheme": "viridis", "reverse": True, "domain": [least, 3 * least], "clamp": True, "type": "log"},
        "legend": {
            "orient": "bottom",
            "direction": "horizontal",
            "gradientLength": 260,
            "tickCount": 5,
            "format": ".2f",
        },
    }
    return {
        "concat": [
            _heat([row for row in rows if row["rule"] == rule], rule, marks.get(rule), color, picture.x)
            for rule in rules
        ],
        "columns": 2,
        "spacing": 28,
    }


def _heat(rows: _Rows, rule: Any, slope: float | None, color: Spec, x_title: str) -> Spec:
    cells = [row for row in rows if row["loss"] is not None]
    best = [row for row in rows if row["loss"] is None]
    wide, high = (_bounds({float(row[key] or 0.0) for row in cells}) for key in ("x", "y"))
    tiles = []
    for row in cells:
        (left, right), (low, top) = wide[float(row["x"] or 0)], high[float(row["y"] or 0)]
        tiles.append({"left": left, "right": right, "low": low, "top": top, "loss": row["loss"]})
    domains = [[min(a for a, _ in ends.values()), max(b for _, b in ends.values())] for ends in (wide, high)]
    x, y = (
        {
            "type": "quantitative",
            "scale": {"type": "log", "domain": domain, "nice": False},
            "axis": {"grid": False, "format": "~g", "tickCount": 4},
            "title": title,
        }
        for domain, title in zip(domains, (x_title, "decay"), strict=True)
    )
    layers: list[Spec] = [
        {
            "data": {"values": tiles},
            "mark": {"type": "rect", "stroke": None},
            "encoding": {
                "x": {**x, "field": "left"},
                "x2": {"field": "right"},
                "y": {**y, "field": "low"},
                "y2": {"field": "top"},
                "color": color,
            },
        },
        {
            "data": {"values": best},
            "mark": {"type": "point", "filled": True, "size": 60, "color": "white", "stroke": _INK, "opacity": 1},
            "encoding": {"x": {**x, "field": "x"}, "y": {**y, "field": "y"}},
        },
    ]
    text = f"{rule}" if slope is None else f"{rule}: slope {slope:.2f}"
    if slope is not None:
        center = [math.fsum(math.log(float(row[key] or 1)) for row in best) / len(best) for key in ("x", "y")]
        ends = [float(row["x"] or 1) for row in best]
        line = [
            {"x": at, "y": math.exp(center[1] + slope * (math.log(at) - center[0]))} for at in (min(ends), max(ends))
        ]
        layers.insert(
            1,
            {
                "data": {"values": line},
                "mark": {"type": "line", "color": "white", "strokeWidth": 2, "clip": True},
                "encoding": {"x": {**x, "field": "x"}, "y": {**y, "field": "y"}},
            },
        )
    return {"width": 270, "height": 230, "title": text, "layer": layers}


def _bounds(values: set[float]) -> dict[float, tuple[float, float]]:
    """Of each value the ends of its tile: halfway to its neighbors, on a logarithmic scale."""
    known = sorted(values)
    middles = [math.sqrt(a * b) for a, b in pairwise(known)]
    if not middles:
        return {value: (value / 2, 2 * value) for value in known}
    edges = [known[0] ** 2 / middles[0], *middles, known[-1] ** 2 / middles[-1]]
    return {value: (edges[i], edges[i + 1]) for i, value in enumerate(known)}


def _tuned(picture: Picture) -> Spec:
    rows = picture.rows
    settings, kinds = _names(rows, "setting"), _names(rows, "kind")
    color = {
        "field": "kind",
        "type": "nominal",
        "title": None,
        "scale": {"domain": kinds, "range": _COLORS[1:3]},
        "legend": {"orient": "top", "symbolType": "circle", "symbolOpacity": 1},
    }

    def panel(key: str, title: str, is_first: bool) -> Spec:
        y: Spec = {"field": "setting", "type": "nominal", "sort": settings, "title": None}
        y["axis"] = {"labels": is_first, "ticks": False, "domain": False, "grid": True}
        x = {"field": key, "type": "quantitative", "title": title, "scale": {"zero": False}}
        side = {"yOffset": {"field": "kind", "sort": kinds}, "color": color}
        ends = [
            {"calculate": f"datum.{key} - datum.{key}_se", "as": "low"},
            {"calculate": f"datum.{key} + datum.{key}_se", "as": "high"},
        ]
        return {
            "width": 240,
            "height": {"step": 16},
            "layer": [
                {
                    "mark": {"type": "point", "filled": True, "size": 50, "opacity": 1},
                    "encoding": {"x": x, "y": y, **side},
                },
                {
                    "transform": ends,
                    "mark": {"type": "rule", "strokeWidth": 1.5},
                    "encoding": {"x": {**x, "field": "low"}, "x2": {"field": "high"}, "y": y, **side},
                },
            ],
        }

    panels = [panel("error", "test error, %", True), panel("loss", "test loss", False)]
    return {"data": {"values": [*rows]}, "hconcat": panels}


def _finals(picture: Picture) -> Spec:
    rows = picture.rows
    arms = _names(rows, "arm")
    y: Spec = {"field": "arm", "type": "nominal", "sort": arms, "title": None}
    y["axis"] = {"ticks": False, "domain": False, "grid": True}
    kinds = ["a seed", "mean", "published"]
    color = {
        "field": "kind",
        "type": "nominal",
        "title": None,
        "scale": {"domain": kinds, "range": [_COLORS[2], _INK, _COLORS[0]]},
        "legend": {"orient": "top", "symbolOpacity": 1},
    }
    shape = {
        "field": "kind",
        "scale": {"domain": kinds, "range": ["circle", _BAR, "diamond"]},
        "legend": {"orient": "top", "title": None},
    }
    values: list[dict[str, Any]] = [
        {"arm": row["arm"], "error": row["error"], "kind": "published" if row["seed"] is None else "a seed"}
        for row in rows
    ]
    for arm in arms:
        own = [float(row["error"] or 0) for row in rows if row["arm"] == arm and row["seed"] is not None]
        values.append({"arm": arm, "error": sum(own) / len(own), "kind": "mean"})
    x: Spec = {"field": "error", "type": "quantitative", "title": "test error, %"}
    x |= {"scale": {"zero": False, "padding": 12}, "axis": {"tickCount": 6, "labelFlush": False}}
    shapes = {"x": x, "y": y, "color": color, "shape": shape}
    return {
        "data": {"values": values},
        "width": 520,
        "height": {"step": 30},
        "mark": {"type": "point", "filled": True, "size": 90, "opacity": 0.75},
        "encoding": shapes,
    }


_BY_KIND: dict[str, Callable[[Picture], Spec]] = {
    "peak": _peak,
    "onset": _onset,
    "slope": _slope,
    "tuned": _tuned,
    "finals": _finals,
}
