"""The hooks of a penalty on outputs: under wrappers and compilers, in copies, and that the model does not notice."""

import copy
import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.helpers import assert_bit_equal, assert_close, by_pickle, by_torch, make_data, make_model, train, weights_of
from tests.unit.recording import (
    PENALTY,
    formula,
    gradients,
    hooks_of,
)
from torchreg.regularizer.activity import ActivityRegularizer

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
