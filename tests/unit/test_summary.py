"""What print(regularizer) shows of a model too long to list."""

import pytest
from torch import nn

from torchreg import L2, Regularizer
from torchreg.selection.folding import Line, folded


def lines(*names, shape="2 x 2", status="- bias"):
    return [Line.named(name, shape, 4, status) for name in names]


def names(of):
    return [line.name for line in of]


def test_a_short_table_is_left_as_it_is():
    short = lines(*(f"{layer}.weight" for layer in range(16)))
    assert folded(short) is short


def test_repeated_layers_become_one_line_with_their_values_added_up():
    (line,) = folded(lines(*(f"layers.{layer}.weight" for layer in range(20))))
    assert (line.parts[1], line.values) == (tuple(map(str, range(20))), 80)
    assert line.name == "layers.{0-19}.weight"


def test_lines_of_other_shape_or_status_stay_apart():
    same = [f"layers.{layer}.weight" for layer in range(16)]
    table = lines(*same) + lines("layers.16.weight", shape="3 x 3") + lines("layers.17.weight", status="L2(1.0)")
    assert names(folded(table)) == ["layers.{0-15}.weight", "layers.16.weight", "layers.17.weight"]


def test_numbers_with_a_gap_are_listed():
    table = lines(*(f"a.{layer}.weight" for layer in range(16)), "b.0.w", "b.2.w", "b.3.w", "b.4.w")
    assert names(folded(table)) == ["a.{0-15}.weight", "b.{0,2,3,4}.w"]


def test_layers_within_layers_fold_at_both_places():
    table = lines(*(f"stage.{s}.block.{b}.weight" for s in range(3) for b in range(6)))
    assert names(folded(table)) == ["stage.{0-2}.block.{0-5}.weight"]


def test_a_ragged_product_is_not_folded_into_one_that_claims_too_much():
    table = lines(*(f"stage.{s}.block.{b}.weight" for s in range(3) for b in range(5 + s)))
    shown = names(folded(table))
    assert shown == [
        "stage.{0-2}.block.{0-4}.weight",
        "stage.{1,2}.block.5.weight",
        "stage.2.block.6.weight",
    ]


def test_a_number_may_follow_an_underscore():
    table = lines(*(f"layers.encoder_layer_{n}.linear1.weight" for n in range(17)))
    assert names(folded(table)) == ["layers.encoder_layer_{0-16}.linear1.weight"]
    assert names(lines("a_b.c_1.w_2", "bias_ih_l0")) == ["a_b.c_1.w_2", "bias_ih_l0"]


def test_words_fold_after_numbers():
    table = lines(*(f"layer.{n}.{side}.bias" for n in range(12) for side in "qkv"))
    assert names(folded(table)) == ["layer.{0-11}.{q,k,v}.bias"]


@pytest.mark.parametrize("depth", [12, 96])
def test_a_deep_model_fits_a_terminal(depth):
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    shown = str(Regularizer(nn.TransformerEncoder(layer, depth), L2(0.1))).splitlines()
    assert len(shown) <= 12
    assert max(map(len, shown)) <= 100


def test_every_value_is_still_accounted_for():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 12)
    rows = str(Regularizer(model, L2(0.1))).splitlines()[2:]
    counted = sum(int(row.split("  ")[-2].strip().replace(",", "")) for row in rows)
    assert counted == sum(p.numel() for p in model.parameters())
