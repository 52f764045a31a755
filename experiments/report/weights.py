"""The report's pictures of weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np

from .cells import Cell
from .figures import averaged, facets, grid_of, label_axis, label_width, names_of, said
from .summary import Summary
from .vega import INK, LINE, TRAIN, Picture, Spec

_HISTOGRAMS = (
    "The sizes of all weights, on a logarithmic axis, all seeds together. Above each: the weights that are not in it."
)
_LAYERS = "The share of exact zeros and the Euclidean norm of each layer's weights, {over}."


def of_weights(cells: Mapping[str, Cell], summary: Summary) -> list[Picture]:
    """The sizes of the weights, and each layer's norm and zeros."""
    if not any(cell.results[0]["norms"] for cell in cells.values()):
        return []
    layers = list(dict.fromkeys(layer for cell in cells.values() for layer in cell.results[0]["norms"]))
    notes = {label: _note(cell) for label, cell in cells.items()}

    def sizes(width: int) -> Spec:
        return _sizes(notes, width)

    def of_layers(width: int) -> Spec:
        return _layers(list(cells), layers, width)

    return [
        Picture(
            "The weights",
            _HISTOGRAMS,
            sizes,
            " ".join(f"{label}: {note}." for label, note in notes.items()),
        ),
        Picture(
            "Layer by layer", said(_LAYERS, summary), of_layers, f"Layers {', '.join(layers)} of {names_of(cells)}."
        ),
    ]


def _note(cell: Cell) -> str:
    """The shares of a cell's weights that have no place in the picture of their sizes."""
    histograms = [result["histogram"] for result in cell.whole]
    edges = histograms[0]["edges"]
    notes = {"exact zeros": cell.mean("zeros").mean}
    for side, edge in (("below", edges[0]), ("above", edges[-1])):
        notes[f"{side} {10.0**edge:g}"] = float(np.mean([histogram[side] for histogram in histograms]))
    return ", ".join(f"{100 * part:.1f} % {name}" for name, part in notes.items() if part > 5e-4) or "no exact zeros"


def _sizes(notes: Mapping[str, str], width: int) -> Spec:
    columns, each = grid_of(width, len(notes), wide=3, narrow=1, left=14)
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
    return {
        "data": {"name": "weights"},
        **found,
        "resolve": {"scale": {"y": "independent"}, "axis": {"x": "independent"}},
    }


def _layers(labels: Sequence[str], layers: Sequence[str], width: int) -> Spec:
    is_wide, left = width > 600, label_width(labels, width)
    each = (width - left - 20) // 2 if is_wide else width - left

    def heat(field: str, title: str, style: str, is_first: bool) -> Spec:
        mean = f"mean_{field}"
        axis = label_axis(width) if is_first or not is_wide else None
        return {
            "width": each,
            "height": {"step": 24},
            "title": title,
            "transform": averaged(field, ["label", "layer"], mean),
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
                    {"field": mean, "title": title, "format": style},
                    {"field": "se", "title": "standard error", "format": style},
                ],
            },
            "layer": [
                {
                    "mark": {"type": "rect", "color": TRAIN, "stroke": LINE, "strokeWidth": 0.5},
                    "encoding": {
                        "fillOpacity": {
                            "field": mean,
                            "type": "quantitative",
                            "scale": {"domainMin": 0, "range": [0, 0.4]},
                            "legend": None,
                        }
                    },
                },
                *(
                    [{"mark": {"type": "text", "color": INK}, "encoding": {"text": {"field": mean, "format": style}}}]
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
