"""Penalties towards a reference: where it comes from, and that it stays what it was meant to be."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from tests.helpers import assert_bit_equal, assert_close, assert_differs, make_model, resume, train, weights_of
from torchreg import L1, L1SP, L2, L2SP, GroupLasso, Regularizer, in_modules


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def shifted(model, by=1.0):
    with torch.no_grad():
        for p in model.parameters():
            p.add_(by)
    return model


@pytest.mark.parametrize("kind", [L1SP, L2SP])
def test_by_default_it_is_the_weights_at_the_start(kind):
    model = make_model()
    regularizer = Regularizer(model, kind(0.5))
    assert regularizer.value() == 0
    count = sum(p.numel() for p in model.parameters() if p.ndim > 1)
    shifted(model)
    assert_close(regularizer.value(), torch.tensor(0.5 * count / (2 if kind is L2SP else 1), dtype=torch.float64))


def test_a_state_dict_is_looked_up_by_name():
    model, pretrained = make_model(), shifted(make_model())
    ours = Regularizer(model, L2SP(0.5, reference=pretrained.state_dict())).value()
    expected = sum((model[i].weight - pretrained[i].weight).square().sum() / 4 for i in (0, 2))
    assert_close(ours, expected)


def test_the_models_own_state_dict_is_its_weights_now_not_the_weights_themselves():
    model = make_model()
    regularizer = Regularizer(model, L2SP(0.5, reference=model.state_dict()))
    shifted(model)
    assert regularizer.value() > 0


def test_an_average_of_the_run_is_followed():
    model = make_model()
    averaged = AveragedModel(model)
    averaged.update_parameters(model)
    regularizer = Regularizer(model, L2SP(0.5, reference=averaged.module.state_dict()))
    assert regularizer.value() == 0
    averaged.update_parameters(shifted(model))  # the average of two
    assert_close(
        regularizer.value(), 0.25 * sum((0 * w + 0.5).square().sum() for w in (model[0].weight, model[2].weight))
    )


def test_what_returns_to_the_reference_is_the_reference_to_the_bit():
    model = make_model()
    start = weights_of(model)
    optimizer = sgd(model)
    Regularizer(model, L1SP(1e3), mode="prox").attach(optimizer)
    after = train(model, optimizer, steps=3)
    assert_bit_equal({k: after[k] for k in after if "weight" in k}, {k: start[k] for k in start if "weight" in k})
    assert_differs(after["0.bias"], start["0.bias"])


@pytest.mark.parametrize(
    ("mode", "penalty"),
    [(mode, penalty) for mode in ("grad", "decoupled", "prox") for penalty in (L2SP(0.5), L1SP(0.1))]
    + [("grad", L2SP(0.5) + L1(0.1)), ("decoupled", L2SP(0.5) + L1(0.1))],
    ids=repr,
)
def test_a_resumed_run_keeps_the_first_runs_reference(mode, penalty):
    def setting(model):
        optimizer = sgd(model)
        return model, optimizer, Regularizer(model, penalty, mode=mode).attach(optimizer)

    straight = setting(make_model())
    expected = train(*straight[:2], steps=6)
    halfway = setting(make_model())
    train(*halfway[:2], steps=3)
    resumed = setting(shifted(make_model()))  # other weights: the reference must come from the file
    resume(resumed, halfway)
    assert_bit_equal(train(*resumed[:2], steps=3), expected)


def test_a_state_without_the_references_is_refused():
    with pytest.raises(ValueError, match="must have the keys 'steps' and 'scale' and 'references', got"):
        Regularizer(make_model(), L2SP(0.5)).load_state_dict({"steps": 1, "scale": 1.0})


def test_a_copy_has_a_reference_of_its_own():
    model = make_model()
    regularizer = Regularizer(model, L2SP(0.5))
    twin_model, twin = copy.deepcopy((model, regularizer))
    shifted(twin_model)
    assert twin.value() > 0
    assert regularizer.value() == 0


def test_a_tied_weight_has_one_reference():
    layer = nn.Linear(3, 3, bias=False)
    regularizer = Regularizer(nn.Sequential(layer, layer), L2SP(1.0))
    assert regularizer.value() == 0
    assert list(regularizer.state_dict()["references"]) == ["0.weight"]


def test_a_head_that_is_new_is_spared_by_a_pattern():
    model = make_model()
    backbone = {"0.weight": model[0].weight.detach().clone()}
    regularizer = Regularizer(model, {"0.*": L2SP(1.0, reference=backbone), "*": L2(1.0)})
    assert_close(regularizer.value(), model[2].weight.square().sum() / 2)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (
            {"other.weight": torch.zeros(1)},
            r"L2SP: reference must hold 0\.weight, got 1 names: other\.weight; exempt new",
        ),
        ({}, r"must hold 0\.weight, got 0 names: none"),
        ({"0.weight": torch.zeros(6, 8)}, r"must have the shape of 0\.weight, \(8, 6\), got \(6, 8\)"),
        (torch.zeros(2, 2), r"must have the shape of 0\.weight, \(8, 6\), got \(2, 2\)"),
    ],
    ids=["another name", "no name", "another shape", "a tensor of another shape"],
)
def test_a_reference_that_does_not_fit_is_refused(reference, message):
    with pytest.raises(ValueError, match=message):
        Regularizer(make_model(), L2SP(1.0, reference=reference))


def test_without_a_model_there_is_no_reference():
    with pytest.raises(ValueError, match="L2SP: reference must be a tensor, got None: pass one, or use a Regularizer"):
        L2SP(1.0).value(torch.ones(2))


def test_two_references_stay_two_though_they_are_equal_at_first():
    model = make_model()
    pretrained, average = ({k: v.clone() for k, v in model.state_dict().items()} for _ in range(2))
    regularizer = Regularizer(model, L2SP(1.0, pretrained) + L2SP(1.0, average))
    for tensor in average.values():
        tensor.add_(1.0)
    count = sum(p.numel() for p in model.parameters() if p.ndim > 1)
    assert_close(regularizer.value(), torch.tensor(count / 2, dtype=torch.float64))


def test_resuming_leaves_the_other_terms_where_they_were_bound():
    tied = nn.Embedding(4, 3)
    model = nn.Sequential(tied, nn.Linear(3, 4, bias=False))
    model[1].weight = tied.weight
    penalty = GroupLasso(1.0) + L2SP(1.0) + L2SP(0.5, {"0.weight": torch.zeros(4, 3), "1.weight": torch.zeros(4, 3)})
    regularizer = Regularizer(model, penalty, select=in_modules(nn.Linear))
    value = regularizer.value().item()
    regularizer.load_state_dict(regularizer.state_dict())
    assert regularizer.value().item() == value


def test_references_of_other_names_are_refused():
    regularizer = Regularizer(make_model(), L2SP(0.5))
    state = regularizer.state_dict()
    state["references"] = {f"module.{name}": w for name, w in state["references"].items()}
    with pytest.raises(ValueError, match=r"state must hold the reference of 0\.weight, got module\.0\.weight, module"):
        regularizer.load_state_dict(state)


def test_a_reference_of_another_kind_is_refused():
    with pytest.raises(TypeError, match=r"L2SP: reference must be None, a tensor or a dict of tensors, got 2\.0"):
        Regularizer(make_model(), L2SP(1.0, reference=2.0))
