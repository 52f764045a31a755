"""skorch's callback: the bits of the recipe, a history that a hand computes, nets that resume, clones."""

from functools import partial
from typing import Any

import pytest

from tests.cases import each_step_mode
from tests.clients import loops
from tests.clients.callbacks import KEYS, STEPS, hand, several, skorch_callback
from tests.clients.loops import EPOCHS, PENALTY
from tests.helpers import assert_bit_equal, assert_close, by_pickle, make_data, make_model, weights_of
from torchreg import L1, linear

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]  # what they warn of is theirs


def skorch_net(*callbacks: Any, **options: Any) -> Any:
    net = loops.skorch_net(**options)
    return net.set_params(callbacks=list(callbacks))


def column(net: Any, key: str) -> list[float]:
    return net.history[:, f"regularizer/{key}"]


@each_step_mode
def test_skorch_trains_as_the_recipe_and_records_what_a_hand_computes(mode, tmp_path):
    expected: list[dict[str, float]] = []

    class Recording(pytest.importorskip("skorch").callbacks.Callback):
        def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
            expected.append(hand(net.module_))

    net = skorch_net(skorch_callback(PENALTY, mode=mode), Recording()).fit(*make_data())
    assert_bit_equal(weights_of(net.module_), loops.skorch(mode, 1, None, tmp_path))
    assert len(expected) == EPOCHS
    for row, numbers in zip(net.history, expected, strict=True):
        assert_close({key: row[key] for key in KEYS}, numbers)


def test_skorch_prints_the_numbers(capsys):
    skorch_net(skorch_callback(PENALTY, mode="prox"), module=make_model).set_params(verbose=1).fit(*make_data())
    assert "regularizer/sparsity" in capsys.readouterr().out


def test_skorch_fits_twice_and_goes_on():
    callback = skorch_callback(L1(0.1), mode="prox", schedule=linear(99))
    net = skorch_net(callback).fit(*make_data())
    once = weights_of(net.module_)
    net.fit(*make_data())
    assert_bit_equal(weights_of(net.module_), once)
    assert callback.regularizer.state_dict()["steps"] == STEPS
    net.partial_fit(*make_data())
    assert callback.regularizer.state_dict()["steps"] == 2 * STEPS
    assert len(net.optimizer_._optimizer_step_post_hooks) == 1
    assert len(net.history) == 2 * EPOCHS


@pytest.mark.parametrize("loads_first", [True, False])
def test_skorch_resumes_weights_and_history(loads_first, tmp_path):
    callbacks = pytest.importorskip("skorch.callbacks")

    def net(*others: Any, epochs: int) -> Any:
        return skorch_net(*others).set_params(max_epochs=epochs).fit(*make_data())

    ours = partial(several, skorch_callback)
    net(*ours(), callbacks.Checkpoint(monitor=None, dirname=str(tmp_path)), epochs=2)
    loading = callbacks.LoadInitState(callbacks.Checkpoint(dirname=str(tmp_path)))
    resumed = net(*([loading, *ours()] if loads_first else [*ours(), loading]), epochs=2)
    straight = net(*ours(), epochs=4)
    assert_bit_equal(weights_of(resumed.module_), weights_of(straight.module_))
    for key in ("schedule/L1", "schedule/scale", "reference/L2SP", "tuned/L2", "tuned/sparsity"):
        assert resumed.history[:, key] == straight.history[:, key]
    assert len(set(straight.history[:, "schedule/scale"])) == 4


def test_skorch_s_nets_are_cloned_pickled_and_searched():
    sklearn = pytest.importorskip("sklearn")
    from sklearn.model_selection import GridSearchCV

    net = skorch_net(skorch_callback(L1(0.1), mode="prox")).fit(*make_data())
    twin = sklearn.base.clone(net)
    assert twin.callbacks[0] is not net.callbacks[0]
    assert twin.callbacks[0].regularizer is None
    assert_bit_equal(weights_of(twin.fit(*make_data()).module_), weights_of(net.module_))

    copied = by_pickle(net).partial_fit(*make_data())
    assert_bit_equal(weights_of(copied.module_), weights_of(net.partial_fit(*make_data()).module_))
    assert len(copied.optimizer_._optimizer_step_post_hooks) == 1

    x, y = (column.numpy() for column in make_data())
    grid = {"callbacks__RegularizerCallback__penalty": [L1(1e-4), L1(10.0)]}
    search = GridSearchCV(net, grid, cv=2, scoring="neg_mean_squared_error", refit=True).fit(x, y)
    shares = []
    for strength in (1e-4, 10.0):
        chosen = sklearn.base.clone(net).set_params(callbacks__RegularizerCallback__penalty=L1(strength)).fit(x, y)
        shares.append(column_of(chosen, "sparsity"))
    assert shares[0] < shares[1] == 1
    assert search.best_params_["callbacks__RegularizerCallback__penalty"] in (L1(1e-4), L1(10.0))
    wrong = sklearn.base.clone(net).set_params(callbacks__RegularizerCallback__mode="loss")
    with pytest.raises(ValueError, match="a callback cannot add to the loss"):
        wrong.fit(x, y)


def column_of(net: Any, key: str) -> float:
    return net.history[-1, f"regularizer/{key}"]
