"""Predictions of many masks: their numbers, and a model that does not notice."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

from tests.helpers import assert_bit_equal, assert_close
from torchreg.nn import insert_dropout, replace_dropout
from torchreg.nn.depth import StochasticDepth
from torchreg.nn.dropout import AlphaDropout, Dropout
from torchreg.nn.model.monte_carlo import mc_dropout


class Scripted(nn.Dropout):
    """Puts out what it was told to, the next at each pass."""

    def __init__(self, outputs: Sequence):
        super().__init__(0.5)
        self.outputs = iter(torch.as_tensor(outputs, dtype=torch.float64))

    def forward(self, x):
        return next(self.outputs)


def scripted(outputs, kind):
    with mc_dropout(Scripted(outputs)) as mc:
        return mc(torch.zeros(len(outputs[0]), 1), len(outputs), kind, at_once=1)


def make_model(drop=nn.Dropout):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        layers = [nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), drop(0.5), nn.Linear(16, 3)]
        return nn.Sequential(*layers).double()


def make_x(batch=5):
    return torch.randn(batch, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


# -- the numbers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drop", [nn.Dropout, Dropout])
def test_mean_and_variance_are_those_that_dropout_of_constants_has(drop):
    p, x, count = 0.3, torch.arange(1.0, 5).double(), 20_000
    model = nn.Sequential(drop(p), nn.Linear(4, 2).double())
    weight, bias = model[1].weight.detach(), model[1].bias.detach()
    mean, variance = weight @ x + bias, p / (1 - p) * weight.square() @ x.square()
    torch.manual_seed(0)
    with mc_dropout(model) as mc:
        prediction = mc(x.expand(3, 4), count, "values")
    assert prediction.samples.shape == (count, 3, 2)
    assert ((prediction.mean - mean).abs() < 4.5 * (variance / count).sqrt()).all()
    assert ((prediction.variance / variance - 1).abs() < 4.5 * math.sqrt(3 / count)).all()
    assert prediction.entropy is None
    assert prediction.mutual_information is None


def test_one_pass_at_a_time_is_the_loop_written_by_hand():
    model, x = make_model(), make_x()
    torch.manual_seed(3)
    with mc_dropout(model) as mc:
        prediction = mc(x, 7, at_once=1)
    torch.manual_seed(3)
    model.eval()[3].train()
    expected = torch.stack([model(x).softmax(-1).detach() for _ in range(7)])
    assert_bit_equal(prediction.samples, expected)
    assert_close(prediction.mean.numpy(), np.mean(expected.numpy(), 0))
    assert_close(prediction.variance.numpy(), np.var(expected.numpy(), 0, ddof=1))


def test_all_passes_at_once_are_one_call_on_the_batch_repeated():
    model, x = make_model(), make_x()
    torch.manual_seed(4)
    with mc_dropout(model) as mc:
        samples = mc(x, 6, "values").samples
    torch.manual_seed(4)
    model.eval()[3].train()
    assert_bit_equal(samples, model(torch.cat([x] * 6)).detach().reshape(6, 5, 3))
    assert (samples.var(0) > 0).all()


def test_entropy_and_information_are_scipys():
    probabilities = np.random.default_rng(0).dirichlet([0.5] * 4, size=(6, 3))
    probabilities[0] = [[1, 0, 0, 0]] * 3
    prediction = scripted(probabilities, "probabilities")
    entropy = scipy.stats.entropy(probabilities.mean(0), axis=-1)
    assert_close(prediction.entropy.numpy(), entropy)
    information = entropy - scipy.stats.entropy(probabilities, axis=-1).mean(0)
    assert_close(prediction.mutual_information.numpy(), information)
    assert_bit_equal(prediction.samples, torch.tensor(probabilities))


def test_passes_that_disagree_inform_and_passes_that_agree_do_not():
    disagree = scripted([[[1, 0]], [[0, 1]]], "probabilities")
    assert_close(disagree.entropy.item(), math.log(2))
    assert_close(disagree.mutual_information.item(), math.log(2))
    with pytest.warns(
        UserWarning, match="mc_dropout: all 3 passes are equal, so that the variance is 0: what is dropped"
    ):
        agree = scripted([[[0.1, 0.2, 0.7]]] * 3, "probabilities")
    assert agree.entropy.item() > 0.5
    assert 0 <= agree.mutual_information.item() < 1e-12


def test_logits_become_probabilities_first():
    logits = [[[1.0, 2.0, 3.0]], [[-200.0, 0.0, 700.0]]]
    prediction = scripted(logits, "logits")
    expected = scripted(scipy.special.softmax(logits, axis=-1), "probabilities")
    assert_close(vars(prediction), vars(expected))


def test_half_precision_is_summed_up_in_single():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 2)).bfloat16()
    with mc_dropout(model) as mc:
        prediction = mc(torch.ones(2, 4, dtype=torch.bfloat16), 3)
    assert {value.dtype for value in vars(prediction).values()} == {torch.float32}


# -- how the passes are run ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("at_once", "batches"), [(None, [15]), (2, [6, 6, 3]), (9, [15])])
def test_at_once_bounds_the_batch(at_once, batches):
    model, seen = make_model(), []
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    with mc_dropout(model) as mc:
        assert mc(make_x(3), 5, at_once=at_once).samples.shape == (5, 3, 3)
    assert seen == batches


@pytest.mark.parametrize(
    "drop",
    [
        lambda p: Dropout(p, noise_shape=(1, None)),
        lambda p: Dropout(p, noise_shape=(5, None)),  # would not fit another batch
        lambda p: StochasticDepth(nn.Identity(), p, mode="batch"),
    ],
)
def test_a_mask_for_the_whole_batch_is_another_one_at_each_pass(drop):
    model, seen = make_model(drop), []
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    with mc_dropout(model) as mc:
        prediction = mc(make_x(5), 20)
    assert seen == [5] * 20
    assert (prediction.variance > 0).all()


def test_a_mask_for_the_whole_batch_in_a_layer_that_is_idle_costs_nothing():
    model, seen = nn.Sequential(make_model(), Dropout(0.0, noise_shape=(1, None))), []
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    with mc_dropout(model) as mc:
        mc(make_x(), 3)
    assert seen == [15]


def test_several_inputs_are_repeated_together():
    class Difference(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x, y):
            return self.drop(x - y)

    x, y = torch.arange(4.0).reshape(4, 1), torch.full((4, 1), 3.0)
    with mc_dropout(Difference()) as mc:
        samples = mc((x, y), 50, "values").samples
    assert ((samples == 0) | (samples == 2 * (x - y))).all()
    assert (samples[:, :3].var(0) > 0).all()


def test_the_input_and_its_gradient_are_left_alone():
    model, x = nn.Sequential(nn.Dropout(0.5, inplace=True)), torch.ones(4, 3, requires_grad=True)
    with mc_dropout(model) as mc:
        assert not mc(x, 2, at_once=1).samples.requires_grad
        assert torch.is_grad_enabled()
    assert_bit_equal(x.detach(), torch.ones(4, 3))


# -- the model ----------------------------------------------------------------------------------------------------


class Odd(nn.Module):
    """Modes that no single call of ``train()`` makes."""

    def __init__(self):
        super().__init__()
        self.branch = StochasticDepth(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), 0.5)
        self.alpha = AlphaDropout(0.2).eval()
        self.idle = nn.Dropout(0.0)
        self.norm = nn.BatchNorm1d(4).eval()
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.norm(self.idle(self.alpha(x + self.branch(x)))))


def test_inside_dropout_is_on_and_all_else_in_evaluation_and_afterwards_all_is_as_before():
    model = Odd()
    modes = {name: module.training for name, module in model.named_modules()}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with mc_dropout(model) as mc:
        assert {name for name, module in model.named_modules() if module.training} == {"branch", "alpha", "idle"}
        mc(torch.randn(8, 4), 5)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert_bit_equal(dict(model.state_dict()), state)
    with pytest.raises(KeyError), mc_dropout(model):
        raise KeyError
    assert {name: module.training for name, module in model.named_modules()} == modes


@pytest.mark.parametrize("enabled", [True, False])
def test_the_fast_path_of_transformers_which_calls_no_dropout_is_not_taken(enabled, monkeypatch):
    monkeypatch.setattr(torch.backends.mha, "_is_fastpath_enabled", enabled)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True), 1).eval()
    x = torch.randn(2, 5, 8)
    with mc_dropout(model) as mc:
        assert (mc(x, 10, "values").variance > 0).all()
    assert torch.backends.mha.get_fastpath_enabled() == enabled


@pytest.mark.parametrize("convert", [replace_dropout, lambda model: insert_dropout(model, 0.5, after=nn.ReLU)])
def test_layers_that_were_replaced_or_inserted_drop_too(convert):
    model = make_model()
    model[3].p = 0.5 if convert is replace_dropout else 0.0
    convert(model)
    with mc_dropout(model) as mc:
        assert (mc(make_x(), 20).variance > 0).all()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(2, 2), "Linear has none"),
        (torch.compile(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), backend="eager"), "OptimizedModule has none"),
        (nn.Sequential(nn.Dropout(0.0), Dropout(0)), "Sequential has p=0 in all its layers"),
        (nn.LSTM(2, 2, 2), "LSTM has none"),
        (nn.Sequential(nn.PairwiseDistance(p=1.0), nn.MultiheadAttention(2, 1)), "Sequential has none"),
    ],
)
def test_a_model_in_which_nothing_is_dropped_is_refused(model, message):
    with (
        pytest.raises(ValueError, match=f"^mc_dropout: model must have dropout with a rate > 0, {message}$"),
        mc_dropout(model),
    ):
        pass
    assert model.training


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match=r"mc_dropout: model must be a torch\.nn\.Module, got list"), mc_dropout([]):
        pass


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"passes": 1}, ValueError, "passes must be a whole number of at least 2, got 1"),
        ({"passes": 2.0}, ValueError, r"passes must be a whole number of at least 2, got 2\.0"),
        ({"at_once": 0}, ValueError, "at_once must be a whole number of at least 1 or None, got 0"),
        ({"outputs": "scores"}, ValueError, "outputs must be one of logits, probabilities, values, got 'scores'"),
        ({"x": [1.0]}, TypeError, "x must be a tensor or a tuple of tensors, got list"),
        ({"x": (torch.ones(2, 4), None)}, TypeError, "x must be a tensor or a tuple of tensors, got NoneType"),
        ({"x": ()}, ValueError, r"x must have the batch first, of one size in all tensors, got the shapes \[\]"),
        ({"x": torch.ones(())}, ValueError, r"x must have the batch first, .* got the shapes \[\(\)\]"),
        ({"x": (torch.ones(2, 4), torch.ones(3, 4))}, ValueError, r"of one size in all tensors, got the shapes \[\(2,"),
    ],
)
def test_a_bad_argument_is_refused(arguments, error, message):
    with mc_dropout(make_model()) as mc, pytest.raises(error, match=f"mc_dropout: .*{message}"):
        mc(**{"x": make_x(), **arguments})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda y: (y, y), TypeError, "output must be a floating-point tensor, got tuple"),
        (lambda y: y.argmax(-1), TypeError, r"output must be a floating-point tensor, got torch\.int64"),
        (lambda y: y.sum(), ValueError, r"output must have the batch first, 10 examples, got the shape \(\)"),
        (lambda y: y.T, ValueError, r"output must have the batch first, 10 examples, got the shape \(4, 10\)"),
        (lambda y: y[:, 0], ValueError, r"logits must have two classes or more .* got outputs of the shape \(5,\)"),
        (lambda y: y[:, :1], ValueError, r"logits must have two classes or more .* got outputs of the shape \(5, 1\)"),
    ],
)
def test_a_bad_output_is_refused(change, error, message):
    model = nn.Sequential(nn.Dropout(0.5))
    model.register_forward_hook(lambda module, args, output: change(output))
    with mc_dropout(model) as mc, pytest.raises(error, match=f"mc_dropout: .*{message}"):
        mc(make_x(), 2)


@pytest.mark.parametrize("training", [True, False])
def test_a_call_in_another_mode_is_refused(training):
    model = make_model().train(training)
    with mc_dropout(model) as mc:
        mc(make_x(), 2)
    with pytest.raises(
        RuntimeError, match="mc_dropout: dropout must be on and all else in evaluation mode: call within"
    ):
        mc(make_x(), 2)
    with mc_dropout(model) as mc:
        model.train(training)
        with pytest.raises(RuntimeError, match=r"neither model\.train\(\) nor model\.eval\(\)"):
            mc(make_x(), 2)
