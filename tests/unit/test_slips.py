"""What a user forgets is told: in the printed table, in one warning, or in one line of error."""

import copy
import gc
import pickle
import subprocess
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.cases import each_step_mode
from tests.helpers import make_data, make_model
from tests.unit.training import set_gradients
from torchreg import L1, L2, ActivityRegularizer, DropoutSchedule, ElasticNet, Regularizer, cosine, everything, linear
from torchreg.nn import insert_dropout, replace_dropout
from torchreg.optim import param_groups


def said(act):
    """The texts of the warnings."""
    with warnings.catch_warnings(record=True) as records:
        warnings.simplefilter("always")
        act()
        gc.collect(1)
    return [str(record.message) for record in records]


# -- made, and never used -----------------------------------------------------------------------------------------


@each_step_mode
def test_one_that_is_never_attached_warns_when_it_dies(mode):
    (text,) = said(lambda: Regularizer(make_model(), {"0.*": L1(0.1), "*": L2(0.5)}, mode=mode))
    assert text == (
        f"Regularizer: L1(0.1), L2(0.5) in mode {mode!r} was never attached and had no effect: call attach(optimizer)"
    )


@pytest.mark.parametrize("penalize", [False, True])
def test_one_whose_value_is_never_asked_for_warns_when_it_dies(penalize):
    def forget():
        regularizer = Regularizer(make_model(), L1(0.1))
        if penalize:
            regularizer.penalize(nn.MSELoss())

    (text,) = said(forget)
    assert "in mode 'loss' was never asked for its value and had no effect: add value() to the loss" in text


USES = {
    "attach": lambda r: r.attach(torch.optim.SGD(r.model.parameters(), lr=0.1)),
    "print": repr,
    "preview": lambda r: r.entries,
    "value": lambda r: r.value(),
    "terms": lambda r: r.terms(),
    "copy": lambda r: (copy.copy(r), repr(r)),
    "deepcopy": copy.deepcopy,
    "pickle": lambda r: pickle.loads(pickle.dumps(r)),
}


@pytest.mark.parametrize("use", USES)
def test_one_that_was_used_or_looked_at_says_nothing(use):
    assert said(lambda: USES[use](Regularizer(make_model(), L1(0.1), mode="prox"))) == []


def test_the_criterion_of_penalize_counts_when_it_is_called():
    x, y = make_data()

    def use():
        model = make_model()
        Regularizer(model, L1(0.1)).penalize(nn.MSELoss())(model(x), y)

    assert said(use) == []


def test_one_that_could_not_be_made_says_nothing_more():
    def fail():
        with pytest.raises(ValueError, match="mode must be"):
            Regularizer(make_model(), L1(0.1), mode="none")

    assert said(fail) == []


REFUSED = {
    "a scheduler": lambda r: r.attach(torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.ones(1)]), 1)),
    "nothing": lambda r: r.attach(),
    "another model's": lambda r: r.attach(torch.optim.SGD(make_model().parameters())),
    "penalize in mode prox": lambda r: r.penalize(nn.MSELoss()),
    "another state": lambda r: r.load_state_dict({}),
}


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED)
def test_one_whose_call_was_refused_says_nothing_more(call):
    def fail():
        regularizer = Regularizer(make_model(), L1(0.1), mode="prox")
        with pytest.raises((TypeError, ValueError)):
            call(regularizer)

    assert said(fail) == []


def test_one_whose_criterion_was_refused_says_nothing_more():
    def fail():
        regularizer = Regularizer(make_model(), L1(0.1))
        with pytest.raises(TypeError):
            regularizer.penalize(None)

    assert said(fail) == []


def test_the_end_of_the_program_tells_it_too():
    program = (
        "from torch import nn; import torchreg\n"
        "regularizer = torchreg.Regularizer(nn.Linear(2, 2), torchreg.L1(0.1), mode='prox')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "was never attached and had no effect: call attach(optimizer)" in done.stderr


@each_step_mode
def test_the_table_says_whether_it_is_attached(mode):
    model = make_model()
    regularizer = Regularizer(model, L1(0.1), mode=mode)
    assert repr(regularizer).splitlines()[1] == "  not attached"
    head, body = torch.optim.SGD(model[2].parameters(), lr=0.1), torch.optim.ASGD(model[0].parameters())
    assert repr(regularizer.attach(head, body)).splitlines()[1] == "  attached to SGD and ASGD"
    regularizer.remove()
    assert repr(regularizer).splitlines()[1] == "  not attached"


def test_in_mode_loss_only_a_schedule_can_be_attached():
    assert "attached" not in repr(Regularizer(make_model(), L1(0.1)))
    assert "  not attached" in repr(Regularizer(make_model(), L1(0.1), schedule=linear(10)))


@pytest.mark.parametrize(
    ("make", "note"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), ""),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), "the minimum of loss + 0.1 * penalty"),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True), "the minimum of loss + 0.1 * penalty"),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.9), ""),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5, dampening=0.2), "the minimum of loss + 0.625 * penalty"),
        (lambda p: torch.optim.Adam(p), "whose steps are not lr * gradient: not the minimum of loss + penalty"),
    ],
)
def test_the_table_of_mode_prox_says_what_is_minimized(make, note):
    model = make_model()
    line = repr(Regularizer(model, L1(0.1), mode="prox").attach(make(model.parameters()))).splitlines()[1]
    assert line.endswith(note) if note else line == "  attached to SGD"


@pytest.mark.parametrize("options", [{}, {"nesterov": True}, {"dampening": 0.6}])
def test_with_momentum_that_is_what_proximal_steps_end_in(options):
    torch.manual_seed(0)
    x = torch.randn(200, 4, dtype=torch.float64)
    y = x @ torch.tensor([[2.0], [-1.0], [0.5], [0.0]], dtype=torch.float64)
    model = nn.Linear(4, 1, bias=False).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.8, **options)
    share = 0.2 / (1 - options.get("dampening", 0))
    Regularizer(model, L1(1.0), mode="prox").attach(optimizer)
    for _ in range(400):
        optimizer.zero_grad()
        (F.mse_loss(model(x), y) / 2).backward()
        optimizer.step()
    expected = torch.zeros(4, dtype=torch.float64)
    gram, moment = x.T @ x / 200, (x.T @ y / 200).squeeze()
    for _ in range(100):  # coordinate descent
        for i in range(4):
            rest = moment[i] - gram[i] @ expected + gram[i, i] * expected[i]
            expected[i] = rest.sign() * (rest.abs() - share).clamp(min=0) / gram[i, i]
    torch.testing.assert_close(model.weight.detach().squeeze(), expected, atol=1e-8, rtol=1e-8)


# -- training in evaluation mode ----------------------------------------------------------------------------------


def trained_in_evaluation(model, criterion, steps, *, no_step=False):
    x, y = make_data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        if not no_step:
            optimizer.step()


@pytest.mark.parametrize("kind", ["parameters", "activities"])
def test_steps_in_evaluation_mode_without_the_penalty_are_told_once(kind):
    def train():
        model = make_model()
        made = Regularizer(model, L2(0.1)) if kind == "parameters" else ActivityRegularizer(model, L2(0.1), "1")
        model.eval()
        trained_in_evaluation(model, made.penalize(nn.MSELoss()), 5)

    (text,) = said(train)  # and none that it was never asked for its value
    assert "is trained in evaluation mode" in text
    assert "call model.train()" in text


def test_evaluation_with_or_without_gradients_is_not_told():
    x, y = make_data()
    model = make_model()
    criterion = Regularizer(model, L2(0.1)).penalize(nn.MSELoss())

    def alternate():
        for _ in range(3):
            model.train()
            trained_in_evaluation(model, criterion, 2)
            model.eval()
            criterion(model(x), y)  # gradients are enabled, and not asked for
            trained_in_evaluation(model, criterion, 2, no_step=True)  # a map of the inputs' gradients
            with torch.no_grad():
                criterion(model(x), y)

    assert said(alternate) == []


# -- all frozen ---------------------------------------------------------------------------------------------------


@each_step_mode
def test_a_regularizer_of_frozen_parameters_alone_is_told_once_and_acts_when_they_are_trained(mode):
    model = make_model().requires_grad_(False)
    model[2].bias.requires_grad_(True)  # which has no penalty
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(
        UserWarning, match=r"is frozen \(0\.weight, 2\.weight\).*: call requires_grad_\(True\)"
    ) as records:
        regularizer = Regularizer(model, L2(0.5), mode=mode).attach(optimizer)
    assert [record.filename for record in records] == [__file__]
    before = model[0].weight.clone()

    def step():
        set_gradients(model, 0.0)
        optimizer.step()

    assert said(step) == []
    assert torch.equal(model[0].weight, before)
    model.requires_grad_(True)
    assert said(step) == []
    assert (model[0].weight.abs() < before.abs()).all()
    regularizer.remove()
    assert said(lambda: regularizer.attach(optimizer)) == []


@pytest.mark.parametrize("select", [everything, lambda info: info.name in ("0.weight", "2.bias")])
@each_step_mode
def test_a_model_that_is_frozen_in_part_is_not_told(mode, select):
    model = make_model()
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert said(lambda: Regularizer(model, L2(0.5), mode=mode, select=select).attach(optimizer)) == []


# -- decay beside a ridge that comes later ------------------------------------------------------------------------


def add_a_group(model, optimizer):
    optimizer.add_param_group({"params": model[2].parameters(), "weight_decay": 0.1})


def write_it(model, optimizer):
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.1


def load_it(model, optimizer):
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0]["weight_decay"] = 0.1
    optimizer.load_state_dict(saved)


def fill_it(model, optimizer):
    for group in optimizer.param_groups:
        group["weight_decay"].fill_(0.1)


def test_a_tensor_that_is_filled_with_a_decay_is_noticed():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=torch.tensor(0.0))
    Regularizer(model, L2(0.5), mode="grad").attach(optimizer)
    set_gradients(model, 0.0)
    optimizer.step()
    fill_it(model, optimizer)
    with pytest.raises(ValueError, match="would decay twice"):
        optimizer.step()


@pytest.mark.parametrize("change", [add_a_group, write_it, load_it])
@pytest.mark.parametrize("penalty", [L2(0.5), L1(0.1) + L2(0.5), 2 * ElasticNet(0.5, l1_ratio=0.3)], ids=repr)
@each_step_mode
def test_decaying_twice_from_now_on_is_refused_before_the_step(change, penalty, mode):
    model = make_model()
    model[2].requires_grad_(False)
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    Regularizer(model, penalty, mode=mode, select=everything).attach(optimizer)
    model[2].requires_grad_(True)
    set_gradients(model, 0.0)
    optimizer.step()
    change(model, optimizer)
    before = [param.detach().clone() for param in model.parameters()]
    with pytest.raises(ValueError, match=r"would decay twice, by .* and by weight_decay=0\.1 of SGD"):
        optimizer.step()
    assert all(torch.equal(now, then) for now, then in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("penalty", [L1(0.1), L2(0.0), ElasticNet(0.5, l1_ratio=1.0)], ids=repr)
@pytest.mark.parametrize("change", [add_a_group, write_it, load_it])
def test_decay_from_now_on_beside_other_penalties_is_fine(change, penalty):
    model = make_model()
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    Regularizer(model[0], penalty, mode="decoupled").attach(optimizer)
    change(model, optimizer)
    set_gradients(model, 0.0)
    optimizer.step()


# -- other slips --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["regularizer", "dropout"])
def test_a_step_by_hand_beside_the_optimizers_is_refused(kind):
    model = nn.Sequential(make_model(), nn.Dropout(0.5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if kind == "regularizer":
        it = Regularizer(model, L1(0.1), mode="grad", schedule=linear(10))
    else:
        it = DropoutSchedule(model, linear(10))
    it.step()
    it.attach(optimizer)
    with pytest.raises(ValueError, match=r"step\(\) is for a .* that is not attached.*: leave step\(\) out"):
        it.step()
    it.remove()
    it.step()
    assert it.state_dict()["steps"] == 2


def test_what_is_no_schedule_is_told_with_advice():
    model = nn.Sequential(make_model(), nn.Dropout(0.5))
    rates = torch.optim.lr_scheduler.StepLR(torch.optim.SGD(model.parameters(), lr=0.1), 10)
    for make in (lambda s: Regularizer(model, L1(0.1), schedule=s), lambda s: DropoutSchedule(model, s)):
        with pytest.raises(TypeError, match=r"got the class cosine: call it, as in cosine\(steps=1000\)"):
            make(cosine)
        with pytest.raises(TypeError, match="got a StepLR, which changes the learning rate: use"):
            make(rates)


def test_what_is_no_criterion_is_told_at_once():
    model = make_model()
    regularizer = Regularizer(model, L1(0.1))
    for criterion, got in ((None, "a NoneType"), (model(make_data()[0]).sum(), "a Tensor")):
        with pytest.raises(TypeError, match=rf"penalize\(\) takes the loss function, .*, got {got}: .* add value"):
            regularizer.penalize(criterion)


OWNERS = {
    "Regularizer": lambda model: Regularizer(model, L1(0.1)),
    "ActivityRegularizer": lambda model: ActivityRegularizer(model, L1(0.1)),
    "DropoutSchedule": lambda model: DropoutSchedule(model, cosine(10)),
    "param_groups": lambda model: param_groups(model, weight_decay=0.1),
    "insert_dropout": lambda model: insert_dropout(model, after="*"),
    "replace_dropout": replace_dropout,
}
NO_MODELS = {
    "generator": lambda: make_model().parameters(),
    "generator of pairs": lambda: make_model().named_parameters(),
    "list": lambda: list(make_model().parameters()),
    "Parameter": lambda: make_model()[0].weight,
    "OrderedDict": lambda: make_model().state_dict(),
}


@pytest.mark.parametrize("kind", NO_MODELS)
@pytest.mark.parametrize("owner", OWNERS)
def test_parameters_instead_of_a_model_are_told_with_advice(owner, kind):
    got = kind.partition(" ")[0]
    line = rf"^{owner}: model must be a torch\.nn\.Module, got {got}: pass the model itself, not its parameters$"
    with pytest.raises(TypeError, match=line):
        OWNERS[owner](NO_MODELS[kind]())


@pytest.mark.parametrize("owner", OWNERS)
def test_other_things_instead_of_a_model_are_told(owner):
    with pytest.raises(TypeError, match=rf"^{owner}: .* got the class Linear: pass an instance$"):
        OWNERS[owner](nn.Linear)
    with pytest.raises(TypeError, match=rf"^{owner}: .* got NoneType$"):
        OWNERS[owner](None)
    with pytest.raises(TypeError, match=rf"^{owner}: .* got list$"):
        OWNERS[owner]([make_model(), make_model()])


def test_types_as_patterns_are_told_with_advice():
    with pytest.raises(ValueError, match=r"got the class Linear: .* with select=in_modules\(nn\.Linear\)"):
        Regularizer(make_model(), {nn.Linear: L1(0.1)})


@pytest.mark.parametrize("kind", [L1, L2, linear, cosine])
def test_a_missing_argument_names_the_class_that_was_called(kind):
    with pytest.raises(TypeError, match=rf"^{kind.__name__}\.__init__\(\) missing"):
        kind()


def test_a_wrong_strength_is_told_in_one_line():
    with pytest.raises(TypeError, match=r"^L1: strength must be a number, got a Sequential$"):
        L1(make_model())
