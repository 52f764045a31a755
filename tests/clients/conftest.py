"""Clients are never asked to go online, and what they keep for a whole process ends with each test."""

import os
import sys

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(autouse=True)
def _accelerate_forgets():
    yield
    if (accelerate := sys.modules.get("accelerate.state")) is not None:
        for state in (accelerate.AcceleratorState, accelerate.GradientState, accelerate.PartialState):
            state._reset_state()
