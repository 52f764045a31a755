"""Attaching a regularizer to an optimizer, saving it and removing it: nothing is left behind."""

import gc
import weakref

import pytest
import torch
from torch import nn

from tests.cases import NoProx, each_step_mode
from tests.helpers import assert_bit_equal, assert_close, assert_differs, make_model, resume, train, weights_of
from tests.optimizers import each_optimizer
from torchreg import L1, L2, MaxNorm, Regularizer, everything, linear, weights


def sgd(model: nn.Module, **options) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1, **options)


# -- attaching and removing ---------------------------------------------------------------------------------------


@each_step_mode
def test_attach_returns_the_regularizer_and_leaves_at_the_end_of_a_with_block(mode):
    model = make_model()
    optimizer = sgd(model)
    with Regularizer(model, L2(0.5), mode=mode).attach(optimizer) as regularizer:
        assert isinstance(regularizer, Regularizer)
        assert len(optimizer._optimizer_step_pre_hooks) == 1
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    regularizer.remove()  # once more does nothing
    regularizer.attach(optimizer)  # and it can come back


def test_a_with_block_that_raises_detaches_too():
    model = make_model()
    optimizer = sgd(model)
    with pytest.raises(KeyError), Regularizer(model, L2(0.5), mode="grad").attach(optimizer):
        raise KeyError
    assert not optimizer._optimizer_step_pre_hooks


@each_step_mode
def test_attaching_twice_is_refused(mode):
    model = make_model()
    regularizer = Regularizer(model, L2(0.5), mode=mode).attach(sgd(model))
    with pytest.raises(ValueError, match="already attached to SGD"):
        regularizer.attach(sgd(model))


@each_step_mode
def test_an_optimizer_that_lacks_a_penalized_parameter_is_refused(mode):
    model = make_model()
    head = torch.optim.SGD(model[2].parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"it does not hold 0\.weight:"):
        Regularizer(model, L2(0.5), mode=mode).attach(head)
    assert not head._optimizer_step_pre_hooks
    model[0].requires_grad_(False)  # a frozen parameter need not be there
    Regularizer(model, L2(0.5), mode=mode).attach(head)


@each_step_mode
@pytest.mark.parametrize("penalty", [L2(0.5), L1(0.1) + L2(0.5)], ids=repr)
def test_decaying_twice_is_refused(mode, penalty):
    model = make_model()
    with pytest.raises(
        ValueError, match=r"0\.weight would decay twice, by L2\(0\.5\) and by weight_decay=0\.01 of AdamW"
    ):
        Regularizer(model, penalty, mode=mode).attach(torch.optim.AdamW(model.parameters()))


@each_step_mode
def test_decay_of_other_parameters_or_beside_other_penalties_is_fine(mode):
    model = make_model()
    biases = [model[0].bias, model[2].bias]
    weights = {"params": [model[0].weight, model[2].weight], "weight_decay": 0}
    groups = torch.optim.AdamW([weights, {"params": biases}], weight_decay=0.1)
    Regularizer(model, L2(0.5), mode=mode).attach(groups)
    for penalty in (L1(0.5), L2(0.0), L1(0.5) + L2(0.0)):
        Regularizer(model, penalty, mode=mode).attach(torch.optim.AdamW(model.parameters()))


def test_loss_mode_has_nothing_to_attach_but_a_schedule():
    model = make_model()
    with pytest.raises(ValueError, match="mode 'loss' has nothing to attach"):
        Regularizer(model, L2(0.5)).attach(sgd(model))
    regularizer = Regularizer(model, L2(0.5), schedule=linear(10)).attach(sgd(model))
    assert_close(regularizer.scale, 1.0)


@pytest.mark.parametrize("optimizer", [None, "SGD", torch.optim.SGD], ids=repr)
def test_only_an_optimizer_can_be_attached_to(optimizer):
    with pytest.raises(TypeError, match=r"attach\(\) takes a torch.optim.Optimizer"):
        Regularizer(make_model(), L2(0.5), mode="grad").attach(optimizer)


def test_bad_constructions_are_refused_with_what_was_given():
    model = make_model()
    with pytest.raises(ValueError, match="mode must be one of loss, grad, decoupled, prox, got 'proximal'"):
        Regularizer(model, L2(0.5), mode="proximal")
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got list"):
        Regularizer(list(model.parameters()), L2(0.5))
    with pytest.raises(TypeError, match=r"penalty must be a Penalty such as L2\(1e-4\), got 0.5"):
        Regularizer(model, 0.5)
    with pytest.raises(TypeError, match="penalty must be a Penalty"):
        Regularizer(model, {"0.*": L2(1.0), "*": None})
    for penalty, advice in (
        (L1, r"give it a strength, as in L1\(1e-4\)"),
        ([L1(1.0), L2(1.0)], r"add penalties up, as in L1\(1e-5\) \+ L2"),
    ):
        with pytest.raises(TypeError, match=advice):
            Regularizer(model, penalty)
    for rules, told in (
        ({}, "a dict of penalties must have name patterns, such as .*, got an empty dict"),
        ({3: L2(1.0)}, "the keys of a dict of penalties are name patterns, such as .*, got an int"),
        ({weights: L2(1.0)}, "got a selector: make a Regularizer for each, with it as select"),
        ({nn.Linear: L2(1.0)}, r"got the class Linear: make a Regularizer for each kind of module, with select=in_mod"),
    ):
        with pytest.raises(ValueError, match=told):
            Regularizer(model, rules)
    with pytest.raises(TypeError, match=r"schedule must be a function of the step number, got 0\.5"):
        Regularizer(model, L2(1.0), schedule=0.5)
    with pytest.raises(ValueError, match="a constraint has no strength that a schedule could change"):
        Regularizer(model, MaxNorm(1.0), mode="prox", schedule=linear(10))
    with pytest.raises(ValueError, match="steps must be a whole number >= 0, got 'x'"):
        Regularizer(model, L2(1.0)).load_state_dict({"steps": "x", "scale": 1.0})
    with pytest.raises(ValueError, match="mode 'prox' needs a penalty with a proximal operator"):
        Regularizer(model, {"0.*": L2(1.0), "*": NoProx()}, mode="prox")


# -- saving -------------------------------------------------------------------------------------------------------


@each_step_mode
def test_training_resumes_from_a_file_bit_for_bit(mode):
    def setting():
        model = make_model()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        return model, optimizer, Regularizer(model, L1(0.1), mode=mode, schedule=linear(20)).attach(optimizer)

    straight = setting()
    expected = train(*straight[:2], steps=10)

    halfway = setting()
    train(*halfway[:2], steps=5)

    resumed = setting()
    resume(resumed, halfway)
    assert_bit_equal(train(*resumed[:2], steps=5), expected)
    assert resumed[2].state_dict() == straight[2].state_dict() == {"steps": 10, "scale": linear(20)(10)}


BAD_TENSORS = [torch.tensor(float("nan")), torch.tensor(-1.0), torch.ones(2, 1)]


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf"), None, "1", *BAD_TENSORS], ids=str)
def test_a_bad_scale_is_refused_and_the_old_one_stays(bad):
    regularizer = Regularizer(make_model(), L2(1.0))
    with pytest.raises(ValueError, match="scale must be a finite number >= 0 or a 0-d tensor, got"):
        regularizer.scale = bad
    with pytest.raises(ValueError, match="scale must be a finite number"):
        regularizer.load_state_dict({"steps": 3, "scale": bad})
    assert regularizer.state_dict() == {"steps": 0, "scale": 1.0}


@pytest.mark.parametrize("state", [{}, {"steps": 1}, {"steps": 1, "scale": 1.0, "mode": "grad"}], ids=str)
def test_a_foreign_state_is_refused(state):
    with pytest.raises(ValueError, match="state must have the keys 'steps' and 'scale'"):
        Regularizer(make_model(), L2(0.5)).load_state_dict(state)


# -- what it leaves in the model and the optimizer ----------------------------------------------------------------


@each_optimizer
@each_step_mode
def test_it_puts_nothing_into_the_model_or_the_optimizer(make_optimizer, mode):
    plain, model = make_model(), make_model()
    alone, optimizer = make_optimizer(plain.parameters()), make_optimizer(model.parameters())
    kinds = [type(module) for module in model.modules()]
    attributes = vars(model[0]).keys() | {}
    with Regularizer(model, L1(0.1) + L2(0.1), mode=mode).attach(optimizer):
        train(plain, alone, steps=3)
        train(model, optimizer, steps=3)
        assert [type(module) for module in model.modules()] == kinds
        assert vars(model[0]).keys() == attributes
        assert model.state_dict().keys() == plain.state_dict().keys()
        assert [group.keys() for group in optimizer.param_groups] == [group.keys() for group in alone.param_groups]
        mine, theirs = (own.state_dict()["state"] for own in (optimizer, alone))
        assert {key: state.keys() for key, state in mine.items()} == {key: s.keys() for key, s in theirs.items()}
        assert vars(optimizer).keys() == vars(alone).keys()


@each_step_mode
def test_after_removal_nothing_holds_on_to_the_regularizer(mode):
    model = make_model()
    optimizer = sgd(model)
    regularizer = Regularizer(model, L2(0.5), mode=mode).attach(optimizer)
    train(model, optimizer, steps=2)
    regularizer.remove()
    alive = weakref.ref(regularizer)
    del regularizer
    assert alive() is None  # without the garbage collector's help


def test_an_attached_regularizer_lives_and_dies_with_its_optimizer():
    model = make_model()
    optimizer = sgd(model)
    alive = weakref.ref(Regularizer(model, L2(0.5), mode="grad").attach(optimizer))
    gc.collect()
    assert alive() is not None
    del optimizer
    gc.collect()
    assert alive() is None


def test_two_regularizers_on_one_optimizer_act_both_and_leave_apart():
    together, apart = make_model(), make_model()
    optimizer, plain = sgd(together), sgd(apart)
    first = Regularizer(together, L1(0.1), mode="grad").attach(optimizer)
    second = Regularizer(together, L2(0.2), mode="grad", select=everything).attach(optimizer)
    sums = Regularizer(apart, {"*weight": L1(0.1) + L2(0.2), "*bias": L2(0.2)}, mode="grad", select=everything)
    sums.attach(plain)
    assert_close(train(together, optimizer, steps=3), train(apart, plain, steps=3))
    first.remove()
    sums.remove()
    Regularizer(apart, L2(0.2), mode="grad", select=everything).attach(plain)
    assert_close(train(together, optimizer, steps=3), train(apart, plain, steps=3))
    second.remove()
    before = weights_of(together)
    assert_differs(train(together, optimizer, steps=1), before)
