"""A regularizer as an object: its value, its attachment, its state, and what it leaves alone."""

import gc
import io
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.cases import each_mode, each_optimizer, each_penalty, each_step_mode
from tests.helpers import assert_bit_equal, assert_close, assert_differs, make_model, train, weights_of
from torchreg import L1, L2, Penalty, Regularizer, cosine, everything, linear


class NoProx(Penalty):
    """A user's own penalty, without a proximal operator."""

    def value(self, w):
        return w.pow(4).sum()

    def gradient(self, w):
        return 4 * w**3


def sgd(model: nn.Module, **options) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1, **options)


# -- the value ----------------------------------------------------------------------------------------------------


@each_penalty
@each_mode
def test_the_value_is_the_sum_over_the_weights_in_every_mode(case, mode):
    model = make_model()
    regularizer = Regularizer(model, case.penalty, mode=mode)
    assert_close(regularizer.value(), case.formula(model[0].weight) + case.formula(model[2].weight))


@each_penalty
def test_terms_split_the_value_by_kind_and_patterns_add_up(case):
    model = make_model()
    terms = Regularizer(model, {"0.*": case.penalty, "*": L1(0.7)}).terms()
    kinds = {type(term).__name__ for term in (*case.penalty.terms, L1(0.7))}
    assert terms.keys() == kinds
    assert_close(sum(terms.values()), case.formula(model[0].weight) + 0.7 * model[2].weight.abs().sum())


def test_the_scale_multiplies_value_and_terms():
    model = make_model()
    regularizer = Regularizer(model, L1(0.2) + L2(0.5))
    value, terms = regularizer.value(), regularizer.terms()
    regularizer.scale = 3.0
    assert_close(regularizer.value(), 3 * value)
    assert_close(regularizer.terms(), {name: 3 * term for name, term in terms.items()})
    regularizer.scale = torch.tensor(3.0, dtype=torch.float64)
    assert_close(regularizer.value(), 3 * value)


def test_the_value_follows_the_weights_and_is_differentiable():
    model = make_model()
    regularizer = Regularizer(model, L2(1.0))
    regularizer.value().backward()
    assert_close(model[0].weight.grad, model[0].weight)
    assert model[0].bias.grad is None
    before = regularizer.value().item()
    with torch.no_grad():
        model[0].weight.mul_(2)
    assert regularizer.value().item() > before


def test_frozen_weights_are_not_in_the_value_and_without_any_it_is_zero():
    model = make_model()
    regularizer = Regularizer(model, L2(1.0))
    model[0].requires_grad_(False)
    assert_close(regularizer.value(), model[2].weight.square().sum() / 2)
    model.requires_grad_(False)
    assert regularizer.value().item() == 0
    assert regularizer.terms() == {}


# -- penalize -----------------------------------------------------------------------------------------------------


def test_penalize_adds_the_value_in_training_and_never_in_validation():
    model, output, target = make_model(), torch.randn(4, 3), torch.randn(4, 3)
    regularizer = Regularizer(model, L2(0.5))
    criterion = regularizer.penalize(nn.MSELoss())
    plain = F.mse_loss(output, target)
    assert_close(criterion(output, target), plain + regularizer.value())
    model.eval()
    assert_bit_equal(criterion(output, target), plain)
    criterion.train()  # the model's mode decides, not the criterion's
    assert_bit_equal(criterion(output, target), plain)


def test_penalize_passes_on_all_arguments_and_takes_any_function():
    model, output, target = make_model().eval(), torch.randn(4, 3), torch.randn(4, 3)
    criterion = Regularizer(model, L2(0.5)).penalize(F.mse_loss)
    assert_bit_equal(criterion(output, target, reduction="sum"), F.mse_loss(output, target, reduction="sum"))


def test_a_penalized_loss_does_not_own_the_model():
    criterion = Regularizer(make_model(), L2(0.5)).penalize(nn.MSELoss())
    assert criterion.state_dict() == {}
    assert list(criterion.parameters()) == []


@each_step_mode
def test_penalize_refuses_a_mode_that_acts_in_the_optimizer(mode):
    with pytest.raises(ValueError, match=f"this one has mode '{mode}'"):
        Regularizer(make_model(), L2(0.5), mode=mode).penalize(nn.MSELoss())


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
    with pytest.raises(RuntimeError, match="already attached to SGD"):
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
    with pytest.raises(ValueError, match="mode 'prox' needs a penalty with a proximal operator"):
        Regularizer(model, {"0.*": L2(1.0), "*": NoProx()}, mode="prox")


# -- the schedule -------------------------------------------------------------------------------------------------


@each_mode
def test_the_schedule_follows_the_steps(mode):
    model = make_model()
    optimizer = sgd(model)
    regularizer = Regularizer(model, L2(0.5), mode=mode, schedule=linear(10)).attach(optimizer)
    scales = []
    for _ in range(4):
        scales.append(regularizer.scale)
        train(model, optimizer, steps=1)
    assert_close(scales, [1.0, 0.9, 0.8, 0.7])


@pytest.mark.parametrize(("mode", "steps"), [("grad", 5), ("decoupled", 5), ("prox", 5)])
def test_a_scheduled_run_is_a_run_with_the_scale_set_by_hand(mode, steps):
    ours, byhand = make_model(), make_model()
    scheduled, plain = sgd(ours), sgd(byhand)
    Regularizer(ours, L1(0.5), mode=mode, schedule=cosine(steps)).attach(scheduled)
    manual = Regularizer(byhand, L1(0.5), mode=mode).attach(plain)
    for step in range(steps):
        manual.scale = cosine(steps)(step)
        train(byhand, plain, steps=1)
    assert_bit_equal(train(ours, scheduled, steps), weights_of(byhand))


def test_step_drives_the_schedule_by_hand():
    regularizer = Regularizer(make_model(), L2(0.5), schedule=linear(4))
    regularizer.step()
    assert_close(regularizer.scale, 0.75)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -0.1])
def test_a_schedule_that_returns_nonsense_is_refused_with_its_step(bad):
    with pytest.raises(ValueError, match=f"schedule must return a finite scale >= 0, got {bad!r} at step 0"):
        Regularizer(make_model(), L2(0.5), schedule=lambda step: bad)
    regularizer = Regularizer(make_model(), L2(0.5), schedule=lambda step: bad if step == 2 else 1.0)
    regularizer.step()
    with pytest.raises(ValueError, match="at step 2"):
        regularizer.step()


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
    file = io.BytesIO()
    torch.save([part.state_dict() for part in halfway], file)
    file.seek(0)

    resumed = setting()
    for part, state in zip(resumed, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    assert_bit_equal(train(*resumed[:2], steps=5), expected)
    assert resumed[2].state_dict() == straight[2].state_dict() == {"steps": 10, "scale": linear(20)(10)}


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf"), None, "1"], ids=str)
def test_a_bad_scale_is_refused_and_the_old_one_stays(bad):
    regularizer = Regularizer(make_model(), L2(1.0))
    with pytest.raises(ValueError, match="scale must be a finite number >= 0 or a tensor, got"):
        regularizer.scale = bad
    with pytest.raises(ValueError, match="scale must be a finite number"):
        regularizer.load_state_dict({"steps": 3, "scale": bad})
    assert regularizer.state_dict() == {"steps": 0, "scale": 1.0}


@pytest.mark.parametrize("state", [{}, {"steps": 1}, {"steps": 1, "scale": 1.0, "mode": "grad"}], ids=str)
def test_a_foreign_state_is_refused(state):
    with pytest.raises(ValueError, match="state must have the keys 'steps' and 'scale'"):
        Regularizer(make_model(), L2(0.5)).load_state_dict(state)


# -- the guest rule -----------------------------------------------------------------------------------------------


@each_optimizer
@each_step_mode
def test_a_guest_puts_nothing_into_the_model_or_the_optimizer(make_optimizer, mode):
    plain, hosting = make_model(), make_model()
    alone, host = make_optimizer(plain.parameters()), make_optimizer(hosting.parameters())
    kinds = [type(module) for module in hosting.modules()]
    attributes = vars(hosting[0]).keys() | {}
    with Regularizer(hosting, L1(0.1) + L2(0.1), mode=mode).attach(host):
        train(plain, alone, steps=3)
        train(hosting, host, steps=3)
        assert [type(module) for module in hosting.modules()] == kinds
        assert vars(hosting[0]).keys() == attributes
        assert hosting.state_dict().keys() == plain.state_dict().keys()
        assert [group.keys() for group in host.param_groups] == [group.keys() for group in alone.param_groups]
        mine, theirs = (optimizer.state_dict()["state"] for optimizer in (host, alone))
        assert {key: state.keys() for key, state in mine.items()} == {key: s.keys() for key, s in theirs.items()}
        assert vars(host).keys() == vars(alone).keys()


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
    host, plain = sgd(together), sgd(apart)
    first = Regularizer(together, L1(0.1), mode="grad").attach(host)
    second = Regularizer(together, L2(0.2), mode="grad", select=everything).attach(host)
    sums = Regularizer(apart, {"*weight": L1(0.1) + L2(0.2), "*bias": L2(0.2)}, mode="grad", select=everything)
    sums.attach(plain)
    assert_close(train(together, host, steps=3), train(apart, plain, steps=3))
    first.remove()
    sums.remove()
    Regularizer(apart, L2(0.2), mode="grad", select=everything).attach(plain)
    assert_close(train(together, host, steps=3), train(apart, plain, steps=3))
    second.remove()
    before = weights_of(together)
    assert_differs(train(together, host, steps=1), before)


# -- what it shows ------------------------------------------------------------------------------------------------


def test_the_repr_shows_every_parameter_with_its_penalty_or_the_reason():
    model = make_model(widths=(2, 3, 3, 1))
    model[2].weight.requires_grad_(False)
    model[4].weight = nn.Parameter(model[4].weight[:, :2])
    lines = repr(Regularizer(model, {"0.*": L1(0.1) + L2(0.2), "*": L2(0.3)}, mode="prox")).splitlines()
    assert lines[0] == ("Regularizer(mode='prox', scale=1.0): 2 of 6 parameters penalized, 8 of 24 values")
    rows = [line.split(maxsplit=1)[0] for line in lines[1:]]
    assert rows == ["parameter", "0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias"]
    endings = ["penalty", "L1(0.1) + L2(0.2)", "- bias", "- frozen", "- bias", "L2(0.3)", "- bias"]
    for line, ending in zip(lines[1:], endings, strict=True):
        assert line.endswith(ending)


def test_the_repr_names_all_places_of_a_tied_parameter():
    layer = nn.Linear(2, 2, bias=False)
    assert repr(Regularizer(nn.Sequential(layer, layer), L2(0.5))).endswith("L2(0.5) (tied: 1.weight)")
