"""Which elements of a weight are one group: asked of the modules themselves, by what each element acts on."""

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor, nn

from tests.helpers import assert_bit_equal
from torchreg import ParamInfo
from torchreg.penalties.partition import Heads, Index, check_groups, resolve, split

MODULES = {
    "Linear": (nn.Linear(3, 4, bias=False), (1, 3)),
    "Conv1d": (nn.Conv1d(3, 4, 2, bias=False), (1, 3, 5)),
    "Conv2d": (nn.Conv2d(2, 4, (2, 1), bias=False), (1, 2, 4, 4)),
    "Conv2d-grouped": (nn.Conv2d(4, 6, 2, groups=2, bias=False), (1, 4, 4, 4)),
    "Conv2d-depthwise": (nn.Conv2d(4, 4, 2, groups=4, bias=False), (1, 4, 4, 4)),
    "Conv3d": (nn.Conv3d(2, 3, 1, bias=False), (1, 2, 2, 2, 2)),
    "ConvTranspose1d": (nn.ConvTranspose1d(3, 4, 2, bias=False), (1, 3, 5)),
    "ConvTranspose2d-grouped": (nn.ConvTranspose2d(4, 6, 2, groups=2, bias=False), (1, 4, 3, 3)),
}
each_module = pytest.mark.parametrize(("module", "shape"), MODULES.values(), ids=MODULES.keys())
SHAPES = [(4, 3), (4, 2, 3), (4,), (), (0, 3), (3, 0), (0,)]


def place(module, name="weight"):
    return ParamInfo(f"layer.{name}", getattr(module, name), module)


def members(shape, spec, owner="GroupLasso"):
    """The groups as sets of positions in the flattened weight."""
    w = torch.arange(1, torch.Size(shape).numel() + 1, dtype=torch.float64).reshape(shape)
    parts = split(w, spec, owner).parts
    return {frozenset(int(number) - 1 for number in row if number) for part in parts for row in part.rows}


def expected(unit_of):
    """Positions that act on the same unit, as :func:`members` gives them."""
    return {frozenset(i for i, unit in enumerate(unit_of) if unit == one) for one in unit_of}


def acted_on(module: nn.Module, x: Tensor, side: str) -> list[int]:
    """For each element of the weight, the one channel of the output (input) that it connects."""
    units = []
    for position in range(module.weight.numel()):
        probe = copy.deepcopy(module).double()
        probe.weight.data.zero_().view(-1)[position] = 1.0
        x = x.detach().requires_grad_()
        y = probe(x)
        y.sum().backward()
        (channel,) = (y if side == "output" else x.grad).abs().transpose(0, 1).flatten(1).sum(1).nonzero().flatten()
        units.append(int(channel))
    return units


@each_module
@pytest.mark.parametrize("side", ["output", "input"])
def test_outputs_and_inputs_are_those_of_the_module(module, shape, side):
    spec = resolve(side, place(module), "GroupLasso")
    x = torch.rand(shape, dtype=torch.float64) + 1
    assert members(module.weight.shape, spec) == expected(acted_on(module, x, side))


@each_module
def test_an_index_of_the_output_units_follows_the_module(module, shape):
    unit_of = acted_on(module, torch.rand(shape, dtype=torch.float64) + 1, "output")
    kind = torch.arange(max(unit_of) + 1) % 2
    spec = resolve(Index("GroupLasso", kind), place(module), "GroupLasso")
    assert members(module.weight.shape, spec) == expected([unit % 2 for unit in unit_of])


@each_module
@pytest.mark.parametrize("side", ["output", "input"])
def test_heads_are_equal_blocks_of_the_modules_units(module, shape, side):
    unit_of = acted_on(module, torch.rand(shape, dtype=torch.float64) + 1, side)
    units = max(unit_of) + 1
    number = 2 if units % 2 == 0 else 3 if units % 3 == 0 else units
    spec = resolve(Heads(number, side), place(module), "GroupLasso")
    assert members(module.weight.shape, spec) == expected([unit // (units // number) for unit in unit_of])


@pytest.mark.parametrize(
    "module", [nn.Embedding(5, 3), nn.EmbeddingBag(5, 3)], ids=lambda module: type(module).__name__
)
def test_an_embedding_takes_tokens_and_gives_features(module):
    token, feature = [i // 3 for i in range(15)], [i % 3 for i in range(15)]
    assert members((5, 3), resolve("input", place(module), "GroupLasso")) == expected(token)
    assert members((5, 3), resolve("output", place(module), "GroupLasso")) == expected(feature)


@pytest.mark.parametrize("name", ["in_proj_weight", "in_proj_bias"])
def test_a_head_has_its_part_of_the_packed_projections(name):
    heads, width = 2, 4
    attention = nn.MultiheadAttention(width, heads, batch_first=True, dtype=torch.float64)
    nn.init.eye_(attention.out_proj.weight)  # so that the output's columns are the heads'
    nn.init.normal_(attention.in_proj_bias)
    x = torch.randn(1, 3, width, dtype=torch.float64)
    before = attention(x, x, x)[0]
    head_of = []
    for position in range(getattr(attention, name).numel()):
        probe = copy.deepcopy(attention)
        getattr(probe, name).data.view(-1)[position] += 1.0
        changed = (probe(x, x, x)[0] - before).abs().amax((0, 1)).view(heads, -1).amax(1) > 1e-9
        head_of.append(int(changed.nonzero()) if changed.sum() == 1 else None)
    unmoved = {i for i, head in enumerate(head_of) if head is None}  # softmax does not see a bias of the keys
    assert unmoved == (set(range(width, 2 * width)) if name == "in_proj_bias" else set())
    found = members(getattr(attention, name).shape, resolve(Heads(heads), place(attention, name), "GroupLasso"))
    assert {group - unmoved for group in found} == expected(head_of) - {frozenset(unmoved)}
    assert {len(group) for group in found} == {getattr(attention, name).numel() // heads}


def test_the_projection_behind_the_attention_has_its_heads_at_the_input():
    projection = nn.MultiheadAttention(4, 2).out_proj
    spec = resolve(Heads(2, "input"), place(projection), "GroupLasso")
    assert members((4, 4), spec) == expected([i % 4 // 2 for i in range(16)])


def test_filters_are_a_convolutions_outputs():
    module = nn.Conv2d(2, 4, 3)
    assert members(module.weight.shape, resolve("filter", place(module), "GroupLasso")) == members(
        (4, 2, 3, 3), "output"
    )


def test_a_bias_is_grouped_by_output():
    module = nn.ConvTranspose1d(4, 6, 2, groups=2)
    assert members((6,), resolve("output", place(module, "bias"), "GroupLasso")) == expected(range(6))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spec", ["tensor", "output", "input", 0, -1, "index"])
def test_joining_undoes_splitting(shape, spec):
    if len(shape) < 2 and spec == "input":
        return
    w = torch.randn(shape)
    spec = Index("GroupLasso", torch.randint(0, 3, shape)) if spec == "index" else spec
    parts = split(w, spec, "GroupLasso")
    assert_bit_equal(parts.map(lambda part: part.rows), w)


def test_joining_undoes_splitting_a_weight_that_is_not_contiguous():
    w = torch.randn(3, 2, 4).transpose(0, 2)
    for spec in ("tensor", "output", "input", 2, Heads(2), Index("GroupLasso", torch.randint(0, 3, w.shape))):
        parts = split(w, spec, "GroupLasso")
        assert_bit_equal(parts.map(lambda part: part.rows), w)


def test_a_number_is_a_dimension():
    assert members((2, 3, 4), -1) == members((2, 3, 4), 2) == expected([i % 4 for i in range(24)])


def test_the_whole_tensor_is_one_group():
    assert members((2, 3), "tensor") == {frozenset(range(6))}


def test_rows_of_small_groups_are_filled_up_with_zeros_that_do_not_count():
    parts = split(torch.tensor([1.0, 2.0, 3.0]), Index("GroupLasso", torch.tensor([7, 0, 7])), "GroupLasso")
    (part,) = parts.parts
    assert part.rows.tolist() == [[2.0, 0.0], [1.0, 3.0]]
    assert part.sizes.tolist() == [[1], [2]]
    assert parts.join([torch.ones(2, 2)]).tolist() == [1.0, 1.0, 1.0]


SIZES = {
    "one of all and many of one": [5000] + [1] * 5000,
    "all sizes": list(range(1, 142)),
    "powers": [2**k for k in range(13)] * 2,
    "equal": [10] * 1000,
    "a few more": [3] * 50 + [4] * 50 + [0],
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_memory_grows_with_the_weight_whatever_the_sizes_are(sizes):
    numbers = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    numbers = numbers[torch.randperm(len(numbers))]
    w = torch.arange(1.0, len(numbers) + 1, dtype=torch.float64)
    partition = split(w, Index("GroupLasso", numbers), "GroupLasso")
    assert sum(part.rows.numel() for part in partition.parts) <= 2 * len(w)
    assert len(partition.parts) <= 1 + math.log2(max(sizes))
    assert_bit_equal(partition.map(lambda part: part.rows), w)
    found = [(int(size), row) for part in partition.parts for row, size in zip(*each_size(part), strict=True)]
    assert sorted(size for size, _ in found) == sorted(size for size in sizes if size)
    for size, row in found:
        members = row[:size].long() - 1
        assert not row[size:].any()
        assert (numbers == numbers[members[0]]).nonzero().flatten().tolist() == sorted(members.tolist())


def each_size(part):
    return part.rows, part.sizes if isinstance(part.sizes, Tensor) else [part.sizes] * len(part.rows)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
def test_an_index_may_have_any_integer_type(dtype):
    spec = check_groups("GroupLasso", torch.tensor([0, 1, 0], dtype=dtype))
    assert members((3,), spec) == {frozenset({0, 2}), frozenset({1})}


def test_an_index_is_kept_as_it_was_given():
    numbers = torch.tensor([0, 1])
    index = Index("GroupLasso", numbers)
    numbers.zero_()
    assert index == Index("GroupLasso", torch.tensor([0, 1]))
    assert index != Index("GroupLasso", torch.tensor([0, 0]))
    assert hash(index) == hash(Index("GroupLasso", torch.tensor([0, 1])))
    assert repr(index) == "tensor([0, 1])"
    assert repr(Index("GroupLasso", torch.zeros(20, 2, dtype=torch.int64))) == "<index of shape (20, 2)>"


def test_a_used_index_can_be_copied():
    index = Index("GroupLasso", torch.tensor([0, 1, 0]))
    split(torch.ones(3), index, "GroupLasso")
    assert copy.deepcopy(index) == pickle.loads(pickle.dumps(index)) == index


def test_an_index_follows_the_weight_to_its_device():
    index = Index("GroupLasso", torch.tensor([0, 1, 0]))
    split(torch.ones(3), index, "GroupLasso")
    parts = split(torch.ones(3, device="meta"), index, "GroupLasso")
    assert all(part.rows.is_meta for part in parts.parts)
    assert parts.map(lambda part: part.rows).is_meta


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ("row", "groups must be 'output', .* got 'row'"),
        (True, "got True"),
        (None, "got None"),
        (1.0, "got 1.0"),
        (torch.tensor([0.5]), "index of whole numbers, got one of torch.float32"),
        (torch.tensor([True]), "index of whole numbers, got one of torch.bool"),
        (torch.tensor([0, -2]), "whole numbers >= 0, got -2"),
    ],
)
def test_what_is_no_group_is_refused(groups, message):
    with pytest.raises(ValueError, match=f"GroupLasso: .*{message}"):
        check_groups("GroupLasso", groups)


@pytest.mark.parametrize(
    ("shape", "spec", "message"),
    [
        ((3,), 1, r"1 must be a dimension of the weight, got one of shape \(3,\)"),
        ((3,), "input", "'input' must be a dimension"),
        ((2, 2), -3, "-3 must be a dimension"),
        ((3, 2), Heads(2), "3 units must divide into 2 equal heads"),
        ((3, 2), Index("GroupLasso", torch.tensor([0, 1])), r"index of the weight's shape \(3, 2\)"),
    ],
)
def test_groups_that_do_not_fit_the_weight_are_refused(shape, spec, message):
    with pytest.raises(ValueError, match=f"GroupLasso: .*{message}"):
        split(torch.ones(shape), spec, "GroupLasso")


@pytest.mark.parametrize(
    ("module", "name", "spec", "message"),
    [
        (nn.Linear(3, 4), "weight", "filter", "'filter' needs a convolution, layer.weight is in Linear"),
        (nn.Linear(3, 4), "bias", "input", "needs a weight with inputs, layer.bias has none"),
        (nn.Linear(3, 4), "weight", 2, "must be a dimension of the weight"),
        (nn.Linear(3, 4), "weight", Heads(3), "4 units must divide into 3"),
        (nn.MultiheadAttention(4, 2), "in_proj_weight", Heads(3), "4 units must divide into 3"),
        (nn.Linear(3, 4), "weight", Index("x", torch.arange(3)), "the 4 output units of layer.weight"),
    ],
)
def test_groups_that_do_not_fit_the_module_are_refused(module, name, spec, message):
    with pytest.raises(ValueError, match=f"GroupLasso: .*{message}"):
        resolve(spec, place(module, name), "GroupLasso")


@pytest.mark.parametrize("arguments", [(0,), (True,), (1.5,), (2, "left")])
def test_heads_are_checked(arguments):
    with pytest.raises(ValueError, match=r"Heads: (number|side) must be"):
        Heads(*arguments)
