"""The gallery's pictures, one function for each kind, so that pages compare.

Every panel is a figure of its own: panels stand side by side on a wide page and below each other
on a narrow one.
"""

from pictures.cells import (
    SENTENCE,
    before_and_after,
    digit_weights,
    matrix,
    sentences,
    sequence,
    tokens,
    weights,
)
from pictures.decay import couplings, decayed
from pictures.images import drawn, feature_maps, masks, montage, photo, picture
from pictures.planes import curves, diagonal, plane, projections
from pictures.regression import TRIPLES, coefficients, compare, fitted, follow, singular_values
from pictures.site import Taught, scraper
from pictures.style import BLUE, FAINT, HUES, INK, ORANGE, histogram, lines
from pictures.training import digits, train

__all__ = [
    "BLUE",
    "FAINT",
    "HUES",
    "INK",
    "ORANGE",
    "SENTENCE",
    "TRIPLES",
    "Taught",
    "before_and_after",
    "coefficients",
    "compare",
    "couplings",
    "curves",
    "decayed",
    "diagonal",
    "digit_weights",
    "digits",
    "drawn",
    "feature_maps",
    "fitted",
    "follow",
    "histogram",
    "lines",
    "masks",
    "matrix",
    "montage",
    "photo",
    "picture",
    "plane",
    "projections",
    "scraper",
    "sentences",
    "sequence",
    "singular_values",
    "tokens",
    "train",
    "weights",
]
