"""Writes the data of the studies beside it: python configs/own/make.py. What it writes is in the repository."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from sklearn.datasets import load_diabetes

HERE = Path(__file__).parent
SIZE = 12  # pixels


def table() -> None:
    """Diabetes patients (Efron, Hastie, Johnstone, Tibshirani, "Least Angle Regression") in their own units."""
    found = load_diabetes(scaled=False)
    names = [*found.feature_names, "progression"]
    rows = np.column_stack([found.data, found.target])
    np.savetxt(HERE / "diabetes.csv", rows, fmt="%.6g", delimiter=",", header=",".join(names), comments="")


def shapes(count: int = 40) -> None:
    """Noisy images of circles, crosses and squares, each at another place and of another size."""
    draw = np.random.default_rng(0)
    for name in ("circle", "cross", "square"):
        folder = HERE / "shapes" / name
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            image = Image.new("L", (SIZE, SIZE))
            pen = ImageDraw.Draw(image)
            width = int(draw.integers(5, 9))
            left, top = map(int, draw.integers(0, SIZE - width, 2))
            box = (left, top, left + width, top + width)
            if name == "circle":
                pen.ellipse(box, outline=255)
            elif name == "square":
                pen.rectangle(box, outline=255)
            else:
                pen.line(box, fill=255)
                pen.line((box[0], box[3], box[2], box[1]), fill=255)
            noisy = np.asarray(image) + draw.normal(0, 60, (SIZE, SIZE))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number:02}.png")


if __name__ == "__main__":
    table()
    shapes()
