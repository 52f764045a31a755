"""Tests that need what this machine lacks are skipped, and say what would run them."""

import os
from pathlib import Path

import pytest
import torch


def pytest_collection_modifyitems(items):
    mnist = Path(os.environ.get("TORCHREG_DATA", "data")) / "MNIST" / "raw" / "train-images-idx3-ubyte"
    lacking = {}
    if not mnist.exists():
        lacking["mnist"] = "needs MNIST: set TORCHREG_DATA to a folder that holds MNIST/raw"
    if not torch.cuda.is_available():
        lacking["cuda"] = "needs a CUDA device"
    for item in items:
        for marker, reason in lacking.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))
