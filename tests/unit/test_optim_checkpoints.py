"""The decoupled optimizers are saved, resumed and copied like any other, and their checkpoints go into torch's own."""

import copy
import inspect

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from tests.cases import each_duplicate
from tests.helpers import (
    assert_bit_equal,
    assert_close,
    assert_copy_trains_apart,
    assert_differs,
    make_model,
    through_a_file,
    train,
    weights_of,
)
from tests.optimizers import COUPLINGS, each_couplings_share, each_decoupled_or_made, each_form, each_kernel
from tests.unit.training import a_weight, one_step
from torchreg.optim import SGDW, AdamW, NAdamW, decoupled
from torchreg.schedules import cosine


@each_decoupled_or_made
@each_form
@each_duplicate
def test_a_copy_takes_the_same_steps_on_its_own(ours, base, options, form, duplicate):
    model = make_model()
    optimizer = ours(each_couplings_share(model), **options, **form, weight_decay=0.1, decay_schedule=cosine(steps=9))
    train(model, optimizer, steps=3)
    _, its_optimizer = assert_copy_trains_apart(duplicate, model, optimizer)
    its_optimizer.add_param_group({"params": [a_weight()]})  # the options are copied, too
    assert its_optimizer.param_groups[-1].items() >= form.items()
    assert its_optimizer.param_groups[-1]["decay_steps"] == 6


@each_decoupled_or_made
@each_form
def test_training_resumes_from_a_file_under_schedules(ours, base, options, form):
    def setting(shift):
        model = make_model(dtype=torch.float32)  # in another one torch's own NAdam goes on with other roundings
        with torch.no_grad():
            for param in model.parameters():
                param.add_(shift)  # another start
        optimizer = ours(
            each_couplings_share(model), **options, **form, weight_decay=0.1, decay_schedule=cosine(steps=9)
        )
        return model, optimizer, LambdaLR(optimizer, lambda step: 0.9**step)

    def go(model, optimizer, scheduler):
        for _ in range(3):
            train(model, optimizer, steps=1)
            scheduler.step()
        return weights_of(model)

    halfway, resumed = setting(0.0), setting(0.1)
    go(*halfway)
    for part, state in zip(resumed, through_a_file([part.state_dict() for part in halfway]), strict=True):
        part.load_state_dict(state)
    assert_bit_equal(go(*resumed), go(*halfway))


@pytest.mark.parametrize("steps", [0, 1])
@each_decoupled_or_made
def test_a_checkpoint_holds_the_start_even_of_weights_that_have_not_moved(ours, base, options, steps):
    def setting(start):
        weights = [a_weight(start), a_weight(start)]
        return weights, ours(weights, **options, weight_decay=0.5, coupling="constant", towards="start")

    def step(weights, optimizer, *moving):
        for i in moving:
            weights[i].grad = torch.zeros(1, dtype=torch.float64)
        optimizer.step()

    (saved, optimizer), (weights, resumed) = setting(1.0), setting(5.0)
    for _ in range(steps):
        step(saved, optimizer, 0)  # the other one has no gradient yet
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    for w in weights:
        w.data.fill_(3.0)
    step(weights, resumed, 0, 1)
    assert_close([w.item() for w in weights], [2.0, 2.0])  # halfway to 1, not to 5
    assert_bit_equal([w.item() for w in saved], [1.0, 1.0])


@each_kernel
def test_a_checkpoint_of_torchs_own_goes_on_bit_for_bit_where_its_decay_means_the_same(ours, base, options):
    theirs = {"weight_decay": 0} if base is not torch.optim.Rprop else {}
    if base in (torch.optim.AdamW, torch.optim.Adafactor):
        theirs = {"weight_decay": 0.1}
    elif "decoupled_weight_decay" in inspect.signature(base).parameters:
        theirs = {"weight_decay": 0.1, "decoupled_weight_decay": True}
    results = []
    for kind in (ours, base):
        model = make_model(dtype=torch.float32)
        first = base(model.parameters(), **options, **theirs)
        train(model, first, steps=5)
        second = kind(model.parameters(), lr=0.123)
        second.load_state_dict(through_a_file(first.state_dict()))
        results.append(train(model, second, steps=5))
    assert_bit_equal(*results)


@pytest.mark.parametrize(
    ("kind", "theirs", "options", "refused"),
    [
        (SGDW, torch.optim.SGD, {}, "coupled to the gradient instead of lr, L2"),
        (NAdamW, torch.optim.NAdam, {}, "coupled to the gradient instead of lr, L2"),
        (AdamW, torch.optim.Adam, {}, "coupled to the gradient instead of lr, L2"),
        (decoupled(torch.optim.Adam), torch.optim.Adam, {}, "coupled to the gradient instead of lr, L2"),
        (AdamW, torch.optim.AdamW, {"coupling": "constant"}, "lr, L2 instead of constant, L2"),
        (AdamW, torch.optim.AdamW, {"decay": "L1"}, "lr, L2 instead of lr, L1"),
    ],
    ids=str,
)
def test_a_checkpoint_whose_decay_means_something_else_is_refused_and_changes_nothing(kind, theirs, options, refused):
    saved = theirs([a_weight()], lr=0.5, weight_decay=0.1)
    one_step(saved)
    optimizer = kind([a_weight()], lr=0.1, weight_decay=0.2, **options)
    one_step(optimizer)
    before = str(optimizer.state_dict())
    with pytest.raises(ValueError, match=rf"\A\w+: weight_decay must mean the same in the checkpoint.*{refused}.*\Z"):
        optimizer.load_state_dict(saved.state_dict())
    assert str(optimizer.state_dict()) == before
    state = saved.state_dict()
    state["param_groups"][0].update({"coupling": "lr", "decay": "L2"})  # what the message says
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] == 0.5


@each_decoupled_or_made
def test_a_checkpoint_goes_into_its_base_class_and_back_and_keeps_each_groups_options(ours, base, options):
    model = make_model(dtype=torch.float32)
    groups = each_couplings_share(model)
    groups[0]["decay"] = "L1"
    optimizer = ours(groups, **options, weight_decay=0.01)
    train(model, optimizer, steps=2)
    plain = base([{"params": [param]} for param in model.parameters()], lr=0.1)
    plain.load_state_dict(through_a_file(optimizer.state_dict()))
    back = ours([{"params": [param]} for param in model.parameters()], lr=0.1)
    back.load_state_dict(through_a_file(plain.state_dict()))
    assert [group["coupling"] for group in back.param_groups] == list(COUPLINGS)
    assert [group["decay"] for group in back.param_groups] == ["L1", "L2", "L2", "L2"]
    twin, original = copy.deepcopy(model), train(model, optimizer, steps=2)
    for group, param in zip(back.param_groups, twin.parameters(), strict=True):
        state = back.state.pop(group["params"][0])
        group["params"], back.state[param] = [param], state
    assert_bit_equal(train(twin, back, steps=2), original)
    before = weights_of(model)
    assert_differs(train(model, plain, steps=1), before)


@pytest.mark.parametrize("saved", [lambda m: torch.optim.AdamW(m.parameters()), lambda m: AdamW(m.parameters())])
def test_a_checkpoint_of_parameters_does_not_fit_the_groups_of_a_model(saved):
    model = make_model()
    state = saved(model).state_dict()
    said = r"AdamW: the checkpoint must have the 2 parameter groups that were made of the model, got 1: load one of"
    with pytest.raises(ValueError, match=said):
        AdamW(model).load_state_dict(state)
    AdamW(model.parameters()).load_state_dict(state)
    AdamW(model).load_state_dict(AdamW(model).state_dict())
    with pytest.raises(ValueError, match="parameter group that doesn't match the size"):  # another model
        AdamW(model).load_state_dict(AdamW(torch.nn.Linear(3, 2)).state_dict())
