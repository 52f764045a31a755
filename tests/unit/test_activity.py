"""A penalty on outputs: its number is the hand-written one's, it is never stale, and the model does not notice."""

import copy
import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

from tests.helpers import assert_bit_equal, assert_close, by_pickle, by_torch, make_data, make_model, train, weights_of
from torchreg import L1, L2, GroupLasso, Huber, KLSparsity, Regularizer
from torchreg.regularizer.activity import ActivityRegularizer

PENALTY = L1(0.3) + L2(0.7)


def formula(activation):
    """``PENALTY`` on an output, divided by the batch size, in torch's own operations."""
    return (0.3 * activation.abs().sum() + 0.35 * (activation * activation).sum()) / len(activation)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def hooks_of(model):
    """How many there are at each module."""
    return [
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._forward_hooks_always_called) for m in model.modules()
    ]


class Block(nn.Module):
    """Calls one layer twice, and a second layer in a way that the test says."""

    def __init__(self, after=lambda layer, x: layer(x)):
        super().__init__()
        self.shared = nn.Linear(6, 6, dtype=torch.float64)
        self.other = nn.Linear(6, 3, dtype=torch.float64)
        self.after = after

    def forward(self, x):
        return self.after(self.other, self.shared(self.shared(x)))


# -- the number ---------------------------------------------------------------------------------------------------


def test_value_and_gradient_are_those_of_the_loss_written_by_hand():
    model, (x, y) = make_model(), make_data()
    activity = ActivityRegularizer(model, PENALTY, "1")
    ours = gradients(model, F.mse_loss(model(x), y) + activity.value())
    theirs = gradients(model, F.mse_loss(model(x), y) + formula(model[:2](x)))
    assert_close(ours, theirs)
    model(x)
    assert_close(activity.value(), formula(model[:2](x)))
    assert_close(sum(activity.terms().values()), activity.value())
    assert activity.terms().keys() == {"L1", "L2"}


def test_the_value_does_not_depend_on_how_often_the_batch_is_repeated():
    model, (x, _) = make_model(), make_data()
    activity = ActivityRegularizer(model, PENALTY + KLSparsity(0.2, squash="sigmoid"), "1")
    model(x)
    once = activity.value()
    model(torch.cat([x, x, x]))
    assert_close(activity.value(), once)


def test_micro_batches_add_up_to_the_whole_batch():
    model, (x, _) = make_model(), make_data()
    activity = ActivityRegularizer(model, PENALTY, "1")
    model(x)
    whole = gradients(model, activity.value())
    model.zero_grad()
    for part in x.chunk(4):
        model(part)
        (activity.value() / 4).backward()
    assert_close({name: p.grad for name, p in model.named_parameters() if p.grad is not None}, whole)


def test_every_call_of_a_module_counts_with_its_own_batch_size():
    model, (x, _) = Block(lambda layer, x: layer(x) + layer(x[:2]).sum()), make_data()
    activity = ActivityRegularizer(model, PENALTY, ["shared", "other"])
    model(x)
    first = model.shared(x)
    second = model.shared(first)
    expected = sum(map(formula, (first, second, model.other(second), model.other(second[:2]))))
    assert_close(activity.value(), expected)


def test_a_tensor_that_two_chosen_modules_put_out_counts_once():
    model = nn.Sequential(nn.Sequential(nn.Linear(6, 4), nn.Identity()), nn.Linear(4, 2)).double()
    x, _ = make_data()
    activity = ActivityRegularizer(model, PENALTY, ["0", "0.*"])
    model(x)
    assert_close(activity.value(), formula(model[0](x)))


@pytest.mark.parametrize(
    ("module", "taken"),
    [
        (nn.LSTM(6, 4, batch_first=True), lambda output: output[0]),
        (nn.MultiheadAttention(6, 2, batch_first=True), lambda output: output[0]),
    ],
    ids=["LSTM", "attention"],
)
def test_of_several_outputs_the_first_counts(module, taken):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module.double()

        def forward(self, x):
            return self.inner(*[x] * (3 if isinstance(module, nn.MultiheadAttention) else 1))

    x = torch.randn(5, 7, 6, dtype=torch.float64)
    model = Model()
    activity = ActivityRegularizer(model, PENALTY, "inner")
    assert_close(activity.value(), torch.zeros(()))
    expected = formula(taken(model(x)))
    assert_close(activity.value(), expected)


class Named(nn.Module):
    def forward(self, x):
        return {"index": x.argmax(1), "hidden": [2 * x, 3 * x]}


def test_of_a_mapping_the_first_floating_point_tensor_counts():
    model, (x, _) = Named(), make_data()
    activity = ActivityRegularizer(model, PENALTY)
    model(x)
    assert_close(activity.value(), formula(2 * x))


def test_the_batch_may_be_another_dimension():
    model, x = nn.LSTM(6, 4).double(), torch.randn(7, 5, 6, dtype=torch.float64)
    activity = ActivityRegularizer(model, KLSparsity(0.2, squash="sigmoid"), batch_dim=1)
    output = model(x)[0].transpose(0, 1)
    assert_close(activity.value(), KLSparsity(0.2, squash="sigmoid").value(output) / 5)


@pytest.mark.parametrize("scale", [0.5, torch.tensor(0.5, dtype=torch.float64)], ids=["number", "tensor"])
def test_the_scale_multiplies_the_value(scale):
    model, (x, _) = make_model(), make_data()
    activity = ActivityRegularizer(model, PENALTY, "1")
    model(x)
    before = activity.value()
    activity.scale = scale
    assert_close(activity.value(), before / 2)


def test_half_precision_outputs_are_summed_in_single_precision():
    model = nn.Linear(4, 4).half()
    with torch.no_grad():
        model.weight.copy_(1000 * torch.eye(4))
        model.bias.zero_()
    activity = ActivityRegularizer(model, L1(1.0))
    model(torch.ones(100, 4, dtype=torch.float16))
    assert_close(activity.value(), torch.tensor(4000.0))


def test_complex_outputs_are_penalized_by_magnitude():
    model, x = nn.Linear(6, 4, dtype=torch.complex128), torch.randn(5, 6, dtype=torch.complex128)
    activity = ActivityRegularizer(model, L1(0.3))
    output = model(x)
    assert_close(activity.value(), 0.3 * output.abs().sum() / 5)


def test_an_empty_batch_costs_nothing():
    model, (x, _) = make_model(), make_data()
    activity = ActivityRegularizer(model, PENALTY + KLSparsity(1.0, squash="sigmoid"), "1")
    model(x[:0])
    assert_close(activity.value().item(), 0.0)


# -- what is recorded ---------------------------------------------------------------------------------------------


def test_nothing_is_recorded_in_evaluation_or_without_gradients():
    model, (x, _) = make_model(), make_data()
    activity = ActivityRegularizer(model, PENALTY, "1")
    for context in (torch.no_grad(), torch.inference_mode()):
        model(x)
        assert activity.value() > 0
        with context:
            model(x)
        assert_close(activity.value(), torch.zeros(()))
        assert activity.terms() == {}
    model(x)
    model.eval()(x)
    assert_close(activity.value(), torch.zeros(()))


def test_the_criterion_adds_the_penalty_in_training_mode_only():
    model, (x, y) = make_model(), make_data()
    activity = ActivityRegularizer(model, PENALTY, "1")
    criterion = activity.penalize(nn.MSELoss())
    assert_close(criterion(model(x), y), F.mse_loss(model(x), y) + formula(model[:2](x)))
    model.eval()
    assert_bit_equal(criterion(model(x), y), F.mse_loss(model(x), y))
    assert list(criterion.parameters()) == []


def test_the_criterion_stacks_on_that_of_a_regularizer_of_weights():
    model, (x, y) = make_model(), make_data()
    activity, weights = ActivityRegularizer(model, PENALTY, "1"), Regularizer(model, L2(0.1))
    criterion = activity.penalize(weights.penalize(nn.MSELoss()))
    assert_close(criterion(model(x), y), F.mse_loss(model(x), y) + formula(model[:2](x)) + weights.value())


def test_forward_passes_without_a_backward_pass_do_not_pile_up():
    model, (x, _) = make_model(), make_data()
    activity = ActivityRegularizer(model, PENALTY, "1")
    outputs = [weakref.ref(model[1](model[0](x)))]  # past the model: not recorded at all
    model[1].register_forward_hook(lambda module, args, output: outputs.append(weakref.ref(output)))
    for _ in range(3):
        model(x)
    assert_close([output() is None for output in outputs], [True, True, True, False])
    activity.value()
    with torch.no_grad():
        model(x)
    assert all(output() is None for output in outputs)


def test_removal_forgets_the_last_pass():
    model, (x, _) = make_model(), make_data()
    activity = ActivityRegularizer(model, PENALTY, "1")
    outputs = []
    model[1].register_forward_hook(lambda module, args, output: outputs.append(weakref.ref(output)))
    model(x)
    activity.remove()
    assert outputs[0]() is None
    assert_close(activity.value(), torch.zeros(()))


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_a_pass_that_raises_halfway_is_forgotten_by_the_next(error):
    failing = True

    def after(layer, x):
        if failing:
            raise error
        return layer(x)

    model, (x, _) = Block(after), make_data()
    activity = ActivityRegularizer(model, PENALTY, "shared")
    for _ in range(3):
        with pytest.raises(error):
            model(x)
    if error is KeyError:
        before = activity.value()
        model.shared(x)  # past the model, so not a part of any pass
        assert_close(activity.value(), before)
    failing = False
    for _ in range(2):
        model(x)
        first = model.shared(x)
        assert_close(activity.value(), formula(first) + formula(model.shared(first)))


def test_a_model_that_calls_itself_is_one_pass():
    class Recursive(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 6, dtype=torch.float64)

        def forward(self, x, depth=2):
            return self.layer(x if depth == 0 else self(self.layer(x), depth - 1))

    model, (x, _) = Recursive(), make_data()
    activity = ActivityRegularizer(model, PENALTY, "layer")
    for _ in range(2):
        model(x)
        steps = [x]
        for _ in range(6):
            steps.append(model.layer(steps[-1]))
        assert_close(activity.value(), sum(map(formula, steps[1:7])) - formula(steps[6]))


def test_what_checkpointing_computes_again_does_not_count():
    (x, _) = make_data()
    plain, frugal = Block(), Block(lambda layer, x: checkpoint(layer, x, use_reentrant=False))
    frugal.load_state_dict(plain.state_dict())
    ours, theirs = ActivityRegularizer(frugal, PENALTY, "*"), ActivityRegularizer(plain, PENALTY, "*")
    for model in (plain, frugal):
        model(x)
    value = theirs.value()
    assert_close(gradients(frugal, ours.value()), gradients(plain, value))
    assert_close(ours.value(), value)


def test_an_output_changed_in_place_is_refused_not_mistaken():
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(inplace=True)).double()
    x, _ = make_data()
    activity = ActivityRegularizer(model, PENALTY, "0")
    model(x)
    with pytest.raises(ValueError, match="the output of '0' must not be changed in place by a later operation"):
        activity.value()
    activity = ActivityRegularizer(model, PENALTY, "1")
    model(x)
    assert_close(activity.value(), formula(model(x)))


# -- wrappers and compilers ---------------------------------------------------------------------------------------


@pytest.fixture
def alone(tmp_path):
    """A process group of one."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")
@pytest.mark.parametrize("outside", [False, True])
def test_distributed_data_parallel_is_seen_through(alone, outside):
    model, (x, y) = make_model(), make_data()
    wrapped = nn.parallel.DistributedDataParallel(model)
    expected = gradients(model, F.mse_loss(model(x), y) + formula(model[:2](x)))
    activity = ActivityRegularizer(wrapped if outside else model, PENALTY, "*1")
    assert_close(gradients(model, F.mse_loss(wrapped(x), y) + activity.value()), expected)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("inplace", [False, True])
def test_a_compiled_model_is_recorded_in_one_graph(backend, inplace, counter):
    model = nn.Sequential(nn.Linear(6, 4), nn.Sequential(nn.ReLU(inplace)), nn.Linear(4, 3)).double()
    x, y = make_data()
    activity = ActivityRegularizer(model, PENALTY, ["0", "1", "1.*"])  # the last two put out the same tensor
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    hidden = model[0](x)
    expected = gradients(model, F.mse_loss(model(x), y) + formula(hidden) + formula(hidden.relu()))
    for _ in range(3):
        assert_close(gradients(model, F.mse_loss(compiled(x), y) + activity.value()), expected)
    model.eval()
    compiled(x)
    assert_close(activity.value(), torch.zeros(()))


def test_a_compiled_model_is_compiled_once(counter):
    model, (x, _) = make_model(), make_data()
    activity = ActivityRegularizer(model, PENALTY, "1")
    compiled = torch.compile(model, backend=counter)
    for _ in range(4):
        compiled(x)
        activity.value().backward()
    assert counter.frame_count == 1


# -- what it leaves in the model ----------------------------------------------------------------------------------


def test_the_model_is_not_changed_and_after_removal_as_before():
    model, plain = make_model(), make_model()
    before = hooks_of(model)
    with ActivityRegularizer(model, PENALTY) as activity:
        assert hooks_of(model) != before
        assert_bit_equal(weights_of(model), weights_of(plain))
        x, _ = make_data()
        assert_bit_equal(model(x), plain(x))
    assert hooks_of(model) == before
    activity.remove()  # once more does nothing
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, plain)]
    assert_bit_equal(train(model, optimizers[0], steps=5), train(plain, optimizers[1], steps=5))


def test_a_regularizer_that_nobody_holds_leaves_the_model():
    model = make_model()
    before = hooks_of(model)
    activity = ActivityRegularizer(model, PENALTY)
    gone = weakref.ref(activity)
    del activity
    assert gone() is None  # without the garbage collector's help
    assert hooks_of(model) == before


def test_the_hooks_do_not_keep_the_model_alive():
    gc.collect()
    model, (x, _) = make_model(), make_data()
    activity = ActivityRegularizer(model, PENALTY)
    model(x)
    gone = weakref.ref(model)
    gc.disable()
    try:
        del model, activity
        assert gone() is None
    finally:
        gc.enable()


each_copy = pytest.mark.parametrize("duplicate", [copy.deepcopy, by_pickle, by_torch])


@each_copy
def test_a_copy_of_the_model_alone_is_not_recorded(duplicate):
    model, (x, _) = make_model(), make_data()
    activity = ActivityRegularizer(model, PENALTY, "1")
    model(x)
    value = activity.value()
    twin = duplicate(model)
    outputs = []
    twin[1].register_forward_hook(lambda module, args, output: outputs.append(weakref.ref(output)))
    assert_close(twin(2 * x), model(2 * x))
    assert outputs[0]() is None
    model(x)
    twin(2 * x)
    assert_close(activity.value(), value)


@each_copy
@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["model first", "regularizer first"])
def test_a_copy_of_both_records_the_same_on_its_own(duplicate, order):
    model, (x, _) = make_model(), make_data()
    pair = (model, ActivityRegularizer(model, PENALTY, "1"))
    model(x)
    copied = duplicate([pair[index] for index in order])
    twin, its_activity = (copied[order.index(index)] for index in range(2))
    assert_close(its_activity.value(), torch.zeros(()))
    twin(2 * x)
    assert_close(its_activity.value(), formula(model[:2](2 * x)))
    assert_close(pair[1].value(), formula(model[:2](x)))
    its_activity.remove()
    assert not any(hooks_of(twin))
    assert any(hooks_of(model))


def test_a_shallow_copy_records_for_itself():
    model, (x, _) = make_model(), make_data()
    activity = ActivityRegularizer(model, PENALTY, "1")
    twin = copy.copy(activity)
    twin.scale = 2.0
    model(x)
    assert_close(twin.value(), 2 * activity.value())
    del twin
    model(x)
    assert_close(activity.value(), formula(model[:2](x)))
    activity.remove()
    assert not any(hooks_of(model))
    twin = copy.copy(activity)
    assert not any(hooks_of(model))
    assert_close(twin.value(), torch.zeros(()))


# -- choosing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("modules", "names"),
    [
        ("1", ["1"]),
        ("*", ["", "0", "1", "2"]),
        ("", [""]),
        (["0", "2"], ["0", "2"]),
        (nn.Linear, ["0", "2"]),
        ((nn.Tanh, "2"), ["1", "2"]),
        (lambda name, module: name > "0" and not isinstance(module, nn.Tanh), ["2"]),
    ],
)
def test_modules_are_chosen_by_pattern_type_or_predicate(modules, names):
    assert list(ActivityRegularizer(make_model(), PENALTY, modules).modules) == names


def test_a_module_is_chosen_by_itself_and_once_under_two_names():
    layer = nn.Linear(2, 2)
    model = nn.Sequential(layer, layer)
    assert list(ActivityRegularizer(model, PENALTY, layer).modules) == ["0"]
    assert list(ActivityRegularizer(model, PENALTY, "1").modules) == ["0"]


def test_the_repr_lists_who_was_chosen():
    assert repr(ActivityRegularizer(make_model(), L1(1e-6), ["0", "1"])) == (
        "ActivityRegularizer(L1(1e-06), scale=1.0): 2 of 4 modules\n  0  Linear\n  1  Tanh"
    )


@pytest.mark.parametrize("modules", ["*.relu", ["1", "*.relu"], nn.ReLU(), lambda name, module: False])
def test_a_choice_that_matches_nothing_is_refused_with_the_names(modules):
    with pytest.raises(ValueError, match=r"modules must select some, .* matches none of '' \(the model\), 0, 1, 2"):
        ActivityRegularizer(make_model(), PENALTY, modules)


@pytest.mark.parametrize("modules", [nn.ReLU, (nn.Tanh, nn.ReLU)])
def test_a_class_that_matches_nothing_is_refused_with_the_classes(modules):
    with pytest.raises(ValueError, match=r"select some, the class ReLU matches none of Sequential, Linear, Tanh$"):
        ActivityRegularizer(make_model(), PENALTY, modules)


def test_bad_constructions_are_refused_with_what_was_given():
    model = make_model()
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got list"):
        ActivityRegularizer([model], PENALTY)
    with pytest.raises(TypeError, match=r"penalty must be a Penalty such as L1\(1e-6\), got 0\.5"):
        ActivityRegularizer(model, 0.5)
    with pytest.raises(TypeError, match="modules must be a pattern, type or predicate, or several of these, got 3"):
        ActivityRegularizer(model, PENALTY, 3)
    with pytest.raises(TypeError, match="modules must be patterns, types or predicates, got 3"):
        ActivityRegularizer(model, PENALTY, [3])
    with pytest.raises(ValueError, match=r"modules must select some of .*, got \[\]"):
        ActivityRegularizer(model, PENALTY, [])
    assert not any(hooks_of(model))


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf"), None, "1"], ids=str)
def test_a_bad_scale_is_refused_and_the_old_one_stays(bad):
    activity = ActivityRegularizer(make_model(), PENALTY)
    with pytest.raises(ValueError, match="scale must be a finite number >= 0 or a 0-d tensor, got"):
        activity.scale = bad
    assert activity.scale == 1.0


@pytest.mark.parametrize("output", ["text", 3, None, [], (torch.arange(3),)], ids=repr)
def test_an_output_without_a_floating_point_tensor_is_refused(output):
    model = Block(lambda layer, x: output)
    activity = ActivityRegularizer(model, PENALTY, "")
    with pytest.raises(TypeError, match="the output of '' must hold a floating-point tensor, got"):
        model(make_data()[0])
    assert_close(activity.value(), torch.zeros(()))


def test_an_output_without_a_batch_is_refused():
    model = Block(lambda layer, x: layer(x).sum())
    activity = ActivityRegularizer(model, PENALTY, "")
    model(make_data()[0])
    with pytest.raises(ValueError, match="the output of '' must have a batch dimension, is 0-d"):
        activity.value()


# -- packed sequences ---------------------------------------------------------------------------------------------


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
