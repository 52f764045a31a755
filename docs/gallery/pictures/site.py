"""What sphinx-gallery asks for: the order of the pages, and the files of a figure."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib.pyplot as plt

from pictures.style import SHADES

ElementTree.register_namespace("", "http://www.w3.org/2000/svg")
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")

ROW = (
    "display: flex; flex-wrap: wrap; justify-content: center; gap: 0.5rem 1rem; margin: 1rem 0"
)


class Taught:
    """For ``within_subsection_order``: the well-known first, and beside each what is like it."""

    # fmt: off
    ORDER = (
        "l1", "l2", "elastic_net", "huber", "lp", "log_sum", "mcp", "scad", "hoyer_square", "slope",
        "l2sp", "l1sp", "group_lasso", "sparse_group_lasso", "exclusive_lasso", "group_mcp", "group_scad",
        "coupled_group_lasso",
        "nuclear", "spectral_norm", "convolution_norm",
        "soft_orthogonality", "double_soft_orthogonality", "srip", "kl_sparsity", "z_loss", "confidence",
        "jacobian", "input_gradient", "complexity",
        "effective", "lasso_net",
        "max_norm", "unit_norm", "non_negative", "simplex", "l1_ball", "l2_ball", "linf_ball", "box",
        "sparsest", "n_of_m", "rank",
        "dropout", "channels", "drop_block", "gaussian_dropout",
        "alpha_dropout", "feature_alpha_dropout", "stochastic_depth", "layer_drop", "drop_connect",
        "multihead_attention",
        "locked_dropout", "embedding_dropout", "word_dropout",
        "concrete_dropout", "variational_dropout", "hard_concrete",
        "lr", "independent", "timescale", "constant", "corrected", "decay_l1", "towards_start", "cautious",
    )
    # fmt: on

    def __init__(self, folder: str) -> None:
        pass

    def __call__(self, name: str) -> int:
        return self.ORDER.index(Path(name).stem.removeprefix("plot_"))


def scraper(block: Any, variables: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """For ``image_scrapers``: each open figure as its thumbnail, light and dark, in one row."""
    images = []
    for number, path in zip(plt.get_fignums(), variables["image_path_iterator"], strict=False):
        text = plt.figure(number).get_label()
        svg, path = drawing(), Path(path).with_suffix(".svg")
        path.write_text(silent(svg))
        for page, name in enumerate(("light", "dark")):
            copy = path.with_stem(f"{path.stem}_{name}")
            copy.write_text(shaded(svg, page))
            place = copy.relative_to(config["src_dir"]).as_posix()
            images.append(f".. image:: /{place}\n   :alt: {text}\n   :class: only-{name}\n")
    plt.close("all")
    return "\n".join([raw(f'<div style="{ROW}">'), *images, raw("</div>")]) if images else ""


def raw(html: str) -> str:
    return f".. raw:: html\n\n   {html}\n"


def drawing() -> str:
    """The current figure as SVG, its paths to a hundredth of a point."""
    text = io.StringIO()
    plt.gcf().savefig(text, format="svg", dpi=200, metadata={"Date": None})
    paths = re.compile(r' d="[^"]*"')
    return paths.sub(lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), text.getvalue())


def silent(svg: str) -> str:
    """A figure without its text, which cannot be read at the size of a thumbnail."""
    root = ElementTree.fromstring(svg)
    for parent in root.iter():
        for child in list(parent):
            if child.get("id", "").startswith("text_"):
                parent.remove(child)
    return ElementTree.tostring(root, encoding="unicode")


def shaded(svg: str, page: int) -> str:
    """A figure in the colors of a light page (0) or a dark one (1)."""
    return re.sub("|".join(SHADES), lambda found: SHADES[found[0]][page], svg)
