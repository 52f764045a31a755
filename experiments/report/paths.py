"""Pictures of an arm with several values: over one number, or over each of several keys."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..config.names import short, text_of
from .cells import Cell, best_of, of_metric, one_standard_error
from .summary import Summary
from .vega import INK, SOFT, TEST, TRAIN, VALID, Picture, Spec, shares_of

_PATHS = (
    "Errors{and_} the norm of each layer's weights{zeros}, {over}. The band of the validation {error} is the standard "
    "error that its finite number of {noun} leaves."
)
_CLOUDS = "Each dot is a point, at one of its values and its {metric}. The ring marks the best, gray dots were pruned."

Rows = list[dict[str, Any]]


def pictures(summary: Summary) -> list[Picture]:
    """The pictures of what was varied, if anything was."""
    found = []
    paths = paths_of(summary)

    def along(width: int) -> Spec:
        return _along(paths, summary, width)

    def over(width: int) -> Spec:
        return _over(summary, width)

    names = ", ".join(path[0].arm for path in paths)
    if paths:
        and_, zeros = (",", ", and the share of exact zeros") if _has_zeros(paths) else (" and", "")
        text = _PATHS.format(and_=and_, zeros=zeros, over=summary.over_seeds, error=summary.error, noun=summary.noun)
        found.append(Picture(f"Along the {_axis_of(paths)}", text, along, f"Curves of {names}."))
    if summary.clouds:
        text = _CLOUDS.format(metric=summary.metric_in_words)
        shown = ", ".join(cloud[0].arm for cloud in summary.clouds)
        found.append(Picture("Every point that was tried", text, over, f"The points of {shown}."))
    return found


def rows_of(summary: Summary) -> dict[str, Rows]:
    """The data of the pictures: the means of each point with a standard error."""
    return {"paths": _path_rows(summary), "points": _cloud_rows(summary)}


def paths_of(summary: Summary) -> list[list[Cell]]:
    """The arms with several values of a number, if any of these is not 0."""
    return [path for path in summary.paths if any(cell.number for cell in path)]


def _axis_of(paths: Sequence[Sequence[Cell]]) -> str:
    names = {short(path[0].point)[0] for path in paths}
    return names.pop() if len(names) == 1 else "strength"


def _path_rows(summary: Summary) -> Rows:
    rows: Rows = []
    for path in paths_of(summary):
        values = [float(cell.number or 0.0) for cell in path]
        places = _places(values, _is_log(values, path[0].is_strength))
        for cell, value, place in zip(path, values, places, strict=True):
            row = {"arm": cell.arm, "value": value, "place": place}
            for key in ("train_error", "test_error", "valid_error"):
                middle, error = of_metric(cell, key)
                ends = {"mean": middle, "low": middle - (error or 0.0), "high": middle + (error or 0.0)}
                rows.append({**row, "kind": "error", "of": _error(key, summary), **ends})
            for kind, key in (("norm", "norms"), ("zeros", "sparsity")):
                for layer in cell.results[0][key]:
                    found = [result[key][layer] for result in cell.results if layer in result[key]]
                    middle = sum(found) / len(found)
                    rows.append({**row, "kind": kind, "of": layer, "mean": middle, "low": middle, "high": middle})
    return rows


def _error(key: str, summary: Summary) -> str:
    names = {"train_error": "training", "test_error": "test", "valid_error": "validation"}
    return f"{names[key]} {summary.error}"


def _has_zeros(paths: Sequence[Sequence[Cell]]) -> bool:
    return any(cell.mean("zeros").mean for path in paths for cell in path)


def _along(paths: Sequence[Sequence[Cell]], summary: Summary, width: int) -> Spec:
    columns = min(len(paths), 3 if width > 600 else 1)
    each = (width - 20) // columns - 60
    panels = []
    for path in paths:
        x, marks, names = _x_of(path, summary, each)
        kinds: list[Spec] = [_errors(path, summary, x, _path_top(paths, summary)), _of_layers("norm", x)]
        kinds += [_of_layers("zeros", x)] if _has_zeros(paths) else []
        stack: list[Spec] = [
            {
                "width": each,
                "height": 150,
                "layer": [kind, *marks, *([] if number else names)],
                "transform": [{"filter": f"datum.arm == {_js(path)}"}],
            }
            for number, kind in enumerate(kinds)
        ]
        for panel in stack[:-1]:
            panel["encoding"] = {"x": {"axis": {"labels": False, "ticks": False, "title": None}}}
        panels.append(
            {"title": path[0].arm, "description": path[0].arm, "vconcat": stack, "spacing": 12, "resolve": _APART}
        )
    return {"data": {"name": "paths"}, "concat": panels, "columns": columns, "spacing": 24, "resolve": _APART}


_APART = {"scale": {"color": "independent", "x": "independent"}, "legend": {"color": "independent"}}


def _js(path: Sequence[Cell]) -> str:
    return json.dumps(path[0].arm)


def _x_of(path: Sequence[Cell], summary: Summary, width: int) -> tuple[Spec, list[Spec], list[Spec]]:
    """The axis of a path; lines at its best value and at the strongest one within one standard error; their names."""
    values = [float(cell.number or 0.0) for cell in path]
    places = _places(values, _is_log(values, path[0].is_strength))
    ticks, names = _ticks(values, places, _is_log(values, path[0].is_strength), most=max(3, width // 55))
    axis: Spec = {"grid": False}
    if names:
        axis |= {"values": ticks, "labelExpr": f"{json.dumps(names)}[indexof({json.dumps(ticks)}, datum.value)]"}
    x = {
        "field": "place",
        "type": "quantitative",
        "title": short(path[0].point)[0],
        "axis": axis,
        "scale": {"zero": False, "nice": False, "padding": 8},
    }
    best = best_of(path, summary.metric)
    assert best is not None
    strongest = one_standard_error(path, best, summary.metric) if best.is_strength else best
    marks = {"best": best} if strongest is best else {"best": best, "one SE": strongest}
    layers: list[Spec] = []
    names_of_marks: list[Spec] = []
    for name, cell in marks.items():
        here = {"datum": places[path.index(cell)]}
        line = {"type": "rule", "strokeDash": [2, 3], "color": INK}
        tip = {"value": f"{name}: {cell.number:.3g}"}
        layers.append({"data": {"values": [{}]}, "mark": line, "encoding": {"x": here, "tooltip": tip}})
        text = {"type": "text", "baseline": "bottom", "align": "left" if cell is not best else "right", "dy": -3}
        shown = {"x": here, "y": {"value": 0}, "text": tip}
        names_of_marks.append({"data": {"values": [{}]}, "mark": {**text, "fontSize": 11}, "encoding": shown})
    return x, layers, names_of_marks


def _errors(path: Sequence[Cell], summary: Summary, x: Spec, top: float) -> Spec:
    names = [_error(key, summary) for key in ("train_error", "test_error", "valid_error")]
    color = {
        "field": "of",
        "type": "nominal",
        "title": None,
        "scale": {"domain": names, "range": [TRAIN, TEST, VALID]},
        "legend": {"columns": 3, "labelFontSize": 11, "labelLimit": 130, "columnPadding": 16, "symbolOpacity": 1},
    }
    axis = {**shares_of(summary), "tickCount": 4}
    y = {"type": "quantitative", "title": summary.error, "scale": {"domain": [0, top]}, "axis": axis}
    layer = _lines("error", x, y, color, ".3~%" if not summary.is_regression else ".4~g")
    if (plain := summary.counterpart(path[0])) is not None:
        level = {"datum": plain.mean("test_error").mean}
        line = {"type": "rule", "strokeDash": [6, 4], "color": TEST, "clip": True}
        tip = {"value": "test, unregularized"}
        layer["layer"].append({"data": {"values": [{}]}, "mark": line, "encoding": {"y": level, "tooltip": tip}})
    return layer


def _of_layers(kind: str, x: Spec) -> Spec:
    color = {
        "field": "of",
        "type": "nominal",
        "title": None,
        "sort": None,
        "scale": {"scheme": "tableau10"},
        "legend": {"columns": 3, "labelFontSize": 11, "labelLimit": 100, "columnPadding": 24, "symbolLimit": 8},
    }
    title, style = ("norm of the weights", ".3~g") if kind == "norm" else ("exact zeros", ".3~%")
    axis = {"tickCount": 4, "format": ".6~g" if kind == "norm" else "~%"}
    y = {
        "type": "quantitative",
        "title": title,
        "axis": axis,
        "scale": {"zero": True} if kind == "norm" else {"domain": [0, 1]},
    }
    return _lines(kind, x, y, color, style)


def _lines(kind: str, x: Spec, y: Spec, color: Spec, style: str) -> Spec:
    tips = [
        {"field": "value", "title": x["title"], "format": ".4~g"},
        {"field": "of", "title": "of"},
        {"field": "mean", "title": "mean", "format": style},
    ]
    area = {"type": "area", "opacity": 0.18, "clip": True}
    line = {"type": "line", "strokeWidth": 1.8, "clip": True}
    point = {"type": "point", "filled": True, "opacity": 1, "size": 26, "clip": True}
    middle = {"x": x, "color": color, "y": {**y, "field": "mean"}}
    ends = {"x": x, "color": color, "y": {**y, "field": "low"}, "y2": {"field": "high"}}
    return {
        "transform": [{"filter": f"datum.kind == '{kind}'"}],
        "layer": [
            *([{"mark": area, "encoding": ends}] if kind == "error" else []),
            {"mark": line, "encoding": middle},
            {"mark": point, "encoding": {**middle, "tooltip": tips}},
        ],
    }


def _path_top(paths: Sequence[Sequence[Cell]], summary: Summary) -> float:
    """The largest error on the axis: twice that of the start and the best; far too strong values lie beyond."""
    near = [cell for path in paths for cell in (path[0], best_of(path, summary.metric)) if cell is not None]
    near_top, top = (
        max(cell.mean(key).mean for cell in cells for key in ("train_error", "valid_error", "test_error"))
        for cells in (near, [cell for path in paths for cell in path])
    )
    return min(2 * near_top, 1.05 * top) or 1.0


def _is_log(values: Sequence[Any], is_strength: bool) -> bool:
    positive = [value for value in values if value > 0]
    if is_strength:
        return bool(positive)
    return len(positive) == len(values) and max(values) > 20 * min(values)


def _places(values: Sequence[float], is_log: bool) -> list[float]:
    """Where the values are on the axis; on a logarithmic one 0 is half a decade before the smallest value."""
    if not is_log:
        return list(values)
    smallest = min(value for value in values if value > 0)
    return [math.log10(value) if value > 0 else math.log10(smallest) - 0.5 for value in values]


def _ticks(values: Sequence[float], places: Sequence[float], is_log: bool, most: int) -> tuple[list[float], list[str]]:
    """Where a logarithmic axis has ticks, and what they are called; nothing for another axis."""
    if not is_log:
        return [], []
    smallest, largest = min(value for value in values if value > 0), max(values)
    decades = range(math.ceil(math.log10(smallest) - 1e-9), math.floor(math.log10(largest) + 1e-9) + 1)
    if len(set(values)) <= most:
        ticks = {place: f"{value:.3g}" for place, value in zip(places, values, strict=True)}
    elif len(decades) < 2:
        ticks = {math.log10(value): f"{value:.2g}" for value in (smallest, largest)}
    else:
        ticks = {float(decade): f"{10.0**decade:g}" for decade in decades[:: -(-len(decades) // most)]}
        ticks |= {place: "0" for place, value in zip(places, values, strict=True) if value == 0}
    return list(ticks), list(ticks.values())


def _cloud_rows(summary: Summary) -> Rows:
    rows: Rows = []
    for cloud in summary.clouds:
        best = best_of(cloud, summary.metric)
        for key, name in _keys(cloud).items():
            values = [cell.point[key] for cell in cloud]
            places = _cloud_places(values)
            for cell, place in zip(cloud, places, strict=True):
                middle, error = of_metric(cell, summary.metric)
                row = {"arm": cell.arm, "key": name, "value": text_of(cell.point[key]), "place": place, "mean": middle}
                row |= {"low": middle - (error or 0.0), "high": middle + (error or 0.0)}
                rows.append({**row, "is": "pruned" if not cell.is_done else "best" if cell is best else "done"})
    return rows


def _keys(cloud: Sequence[Cell]) -> Mapping[str, str]:
    keys = list(cloud[0].point)
    return dict(zip(keys, short(keys), strict=True))


def _is_numeric(values: Sequence[Any]) -> bool:
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)


def _cloud_places(values: Sequence[Any]) -> Sequence[Any]:
    """Numbers are at their value, others side by side."""
    if not _is_numeric(values):
        return [text_of(value) for value in values]
    return _places([float(value) for value in values], _is_log(values, is_strength=False))


def _over(summary: Summary, width: int) -> Spec:
    """The metric against the value, for each searched arm and key."""
    most = max(len(_keys(cloud)) for cloud in summary.clouds)
    columns = min(most, 4 if width > 600 else 1)
    each = (width - 20) // columns - 55
    panels = [
        _cloud_panel(cloud, key, name, summary, each) for cloud in summary.clouds for key, name in _keys(cloud).items()
    ]
    return {"data": {"name": "points"}, "concat": panels, "columns": columns, "spacing": 22, "resolve": _APART}


def _cloud_panel(cloud: Sequence[Cell], key: str, name: str, summary: Summary, width: int) -> Spec:
    values = [cell.point[key] for cell in cloud]
    x: Spec = {"field": "place", "title": name, "axis": {"grid": False}}
    if _is_numeric(values):
        numbers = [float(value) for value in values]
        is_log = _is_log(numbers, is_strength=False)
        ticks, names = _ticks(numbers, _places(numbers, is_log), is_log, most=max(3, width // 70))
        x |= {"type": "quantitative", "scale": {"zero": False, "nice": False, "padding": 8}}
        if names:
            x["axis"] = {
                "grid": False,
                "values": ticks,
                "labelExpr": f"{json.dumps(names)}[indexof({json.dumps(ticks)}, datum.value)]",
            }
    else:
        order = [text_of(value) for value in summary.sweep.space[key].values or ()] if summary.sweep else []
        x |= {"type": "nominal", "sort": order, "axis": {"labelAngle": -30, "labelLimit": 110, "grid": False}}
    is_error = summary.metric == "valid_error"
    axis = {"tickCount": 4, **(shares_of(summary) if is_error else {"format": ".6~g"})}
    y = {"type": "quantitative", "title": summary.metric_in_words, "axis": axis, "scale": {"zero": False}}
    style = ".3~%" if is_error and not summary.is_regression else ".4~g"
    gray = {"condition": {"test": "datum.is == 'pruned'", "value": SOFT}, "value": TRAIN}
    tips = [
        {"field": "value", "title": name},
        {"field": "mean", "title": summary.metric_in_words, "format": style},
        {"field": "is", "title": "was"},
    ]
    ring = {"type": "point", "filled": False, "size": 190, "color": TEST, "strokeWidth": 2}
    return {
        "title": cloud[0].arm,
        "description": cloud[0].arm,
        "width": width,
        "height": 150,
        "transform": [{"filter": f"datum.arm == {json.dumps(cloud[0].arm)} && datum.key == {json.dumps(name)}"}],
        "encoding": {"x": x},
        "layer": [
            {"mark": "rule", "encoding": {"y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": gray}},
            {
                "mark": {"type": "point", "filled": True, "opacity": 0.8, "size": 45},
                "encoding": {"y": {**y, "field": "mean"}, "color": gray, "tooltip": tips},
            },
            {
                "transform": [{"filter": "datum.is == 'best'"}],
                "mark": ring,
                "encoding": {"y": {**y, "field": "mean"}},
            },
        ],
    }
