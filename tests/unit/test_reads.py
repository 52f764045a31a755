"""A step reads no number out of a tensor: on a GPU the CPU would have to wait for it."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.cases import MODES, each_penalty
from tests.helpers import a_step, make_data, make_model
from torchreg import Regularizer, linear

aten = torch.ops.aten
READING = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default}


class Reads(TorchDispatchMode):
    """Counts the operations whose result, or whose size of the result, the CPU needs to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = func in (aten.index.Tensor, aten.index_put_.default) and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if func in READING or by_mask:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", MODES)
@each_penalty
def test_a_step_reads_no_number(case, mode, monkeypatch):
    if mode == "prox" and not case.is_proximal:
        pytest.skip("has no proximal operator")
    monkeypatch.setattr("torchreg.regularizer.value._read", lambda scale: scale)  # as it is on a GPU
    model = make_model()
    step = a_step(model, Regularizer(model, case.penalty, mode=mode, schedule=linear(8)), make_data())
    with Reads() as reads:
        step()
    assert not reads.found


def test_what_reads_is_seen():
    x = torch.ones(3)
    with Reads() as reads:
        x.sum().item()
        x[x > 0]
        bool(x.any())
    assert len(reads.found) == 3
