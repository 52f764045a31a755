"""Every test starts from the same seed, and hypothesis draws the same examples in every run."""

import hypothesis
import pytest
import torch

pytest.register_assert_rewrite("tests.helpers")

torch.set_num_threads(
    1
)  # the tensors are tiny: threads that wait for each other on a busy machine take 50 times as long

hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
