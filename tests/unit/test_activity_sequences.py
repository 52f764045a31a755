"""A penalty on packed sequences is that on the padded batch without its padding."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.helpers import assert_close
from tests.unit.recording import (
    PENALTY,
    formula,
    gradients,
)
from torchreg import GroupLasso, Huber, KLSparsity
from torchreg.regularizer.activity import ActivityRegularizer


class Recurrent(nn.Module):
    def __init__(self, kind=nn.LSTM):
        super().__init__()
        self.rnn = kind(4, 3, batch_first=True, dtype=torch.float64)

    def forward(self, x):
        return self.rnn(x)[0]


def batch_of(lengths, **options):
    x = torch.randn(len(lengths), max(lengths), 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return x, pack_padded_sequence(x, torch.tensor(lengths), batch_first=True, **options)


@pytest.mark.parametrize("penalty", [PENALTY, KLSparsity(0.2, squash="sigmoid"), GroupLasso(0.1), 2 * Huber(0.5, 0.1)])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_packed_sequences_of_one_length_are_the_padded_batch(penalty, kind):
    model, (x, packed) = Recurrent(kind), batch_of([5, 5, 5])
    activity = ActivityRegularizer(model, penalty, "rnn")
    model(x)
    ours, theirs = activity.value(), gradients(model, activity.value())
    model(packed)
    assert_close(activity.value(), ours)
    assert_close(gradients(model, activity.value()), theirs)


@pytest.mark.parametrize("lengths", [[5, 3, 1], [2, 5, 3], [1, 4]])
def test_packed_sequences_are_the_padded_batch_without_its_padding(lengths):
    model, (x, packed) = Recurrent(), batch_of(lengths, enforce_sorted=False)
    activity = ActivityRegularizer(model, PENALTY, "rnn")
    y = model(packed)
    rows = [model(one[:length][None])[0] for one, length in zip(x, lengths, strict=True)]
    model(packed)
    assert_close(activity.value(), sum(len(row) * formula(row) for row in rows) / len(lengths))
    padded = pad_packed_sequence(y, batch_first=True)[0]
    assert_close(activity.value(), formula(padded))
    model(packed)
    sparsity = ActivityRegularizer(model, KLSparsity(0.2, squash="sigmoid"), "rnn")
    model(packed)
    units = [torch.stack([row[t] for row in rows if len(row) > t]) for t in range(max(lengths))]
    expected = sum(KLSparsity(0.2, squash="sigmoid").value(unit) for unit in units) / len(lengths)
    assert_close(sparsity.value(), expected)


def test_a_penalty_that_is_no_sum_over_elements_needs_sequences_of_one_length():
    model, (_, packed) = Recurrent(), batch_of([5, 3])
    activity = ActivityRegularizer(model, GroupLasso(0.1), "rnn")
    model(packed)
    with pytest.raises(
        ValueError, match=r"GroupLasso is no sum over the elements, so .*, the output of 'rnn' has packed"
    ):
        activity.value()
