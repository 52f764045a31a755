"""Every test starts from the same seed, and hypothesis draws the same examples in every run."""

import hypothesis
import pytest
import torch

pytest.register_assert_rewrite("tests.helpers")

hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
