"""What the decoupled optimizers leave alone, and that they save, copy and nest like any other."""

import copy
import inspect
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from tests.cases import each_duplicate
from tests.helpers import (
    assert_bit_equal,
    assert_close,
    assert_copy_trains_apart,
    assert_differs,
    make_data,
    make_model,
    through_a_file,
    train,
    weights_of,
)
from tests.optimizers import (
    COUPLINGS,
    KERNELS,
    each_coupling,
    each_decoupled,
    each_decoupled_or_made,
    each_form,
    each_kernel,
    undecayed,
)
from tests.unit.training import a_weight, one_step
from torchreg import L2, Regularizer
from torchreg.optim import SGDW, AdamW, DecoupledDecay, NAdamW, decoupled
from torchreg.schedules import cosine


def each_couplings_share(model):
    """A group for each coupling."""
    return [
        {"params": [param], "coupling": coupling} for param, coupling in zip(model.parameters(), COUPLINGS, strict=True)
    ]


# -- what is left alone -------------------------------------------------------------------------------------------


@each_kernel
@each_form
def test_the_decay_enters_neither_the_gradient_nor_the_moments(ours, base, options, form):
    # Not "the gradient stays as it is": foreach SGD with Nesterov momentum writes into it by itself.
    gradients, states = [], []
    for kind in (partial(ours, weight_decay=0.1, **form), partial(undecayed, base)):
        optimizer = kind([w := a_weight()], **options)
        for value in (1.0, 2.0):
            one_step(optimizer, value)
        gradients.append(w.grad)
        averages_weights = base is torch.optim.ASGD
        states.append({k: v for k, v in optimizer.state[w].items() if k != "start" and not averages_weights})
    assert_bit_equal(*gradients)
    assert_bit_equal(*states)


@each_decoupled_or_made
@each_form
def test_weights_without_a_gradient_do_not_decay(ours, base, options, form):
    for coupling in COUPLINGS:
        still, moving = a_weight(), a_weight()
        optimizer = ours([still, moving], **options, coupling=coupling, **form, weight_decay=0.1)
        with torch.no_grad():  # away from the start
            still.add_(1)
            moving.add_(1)
        moving.grad = torch.zeros(1, dtype=torch.float64)
        optimizer.step()
        assert still.item() == 2.0
        assert moving.item() < 2.0


def test_the_groups_show_their_decay_even_after_a_step_that_raised():
    optimizer = SGDW([w := a_weight()], lr=0.1, weight_decay=0.4)
    w.grad = torch.ones(1, dtype=torch.float64).to_sparse()
    optimizer.param_groups[0]["nesterov"] = "yes"  # makes the base's own step fail
    optimizer.param_groups[0]["momentum"] = "no"
    with pytest.raises(TypeError):
        optimizer.step()
    assert optimizer.param_groups[0]["weight_decay"] == 0.4


@pytest.mark.parametrize("closure", [False, True], ids=["", "closure"])
@pytest.mark.parametrize("kind", sorted({row[0] for row in KERNELS.values()}, key=str), ids=lambda it: it.__name__)
def test_a_sparse_gradient_is_refused_before_anything_has_changed_or_is_taken(kind, closure):
    w, other = (nn.Parameter(torch.ones(3, 2)) for _ in range(2))
    optimizer = kind([other, w], lr=0.1, weight_decay=0.1)
    before = str(optimizer.state_dict())
    with torch.sparse.check_sparse_tensor_invariants():
        other.grad, w.grad = torch.ones(3, 2), torch.eye(3, 2).to_sparse()
    step = partial(optimizer.step, (lambda: 1.0) if closure else None)
    if issubclass(kind, (torch.optim.SGD, torch.optim.Adagrad)):
        with torch.sparse.check_sparse_tensor_invariants():
            step()
        assert_close(w[2].detach(), torch.full((2,), 0.99), tolerance=1e-6)  # the whole weight decays
        return
    with pytest.raises(ValueError, match=r"\A\w+: gradients must be dense, got a sparse one .* shape \(3, 2\).*\Z"):
        step()
    assert_bit_equal([w.detach(), other.detach()], [torch.ones(3, 2)] * 2)
    assert str(optimizer.state_dict()) == before


@each_decoupled
@pytest.mark.parametrize("mode", ["grad", "decoupled"])
def test_weights_that_would_decay_twice_are_refused(ours, base, options, mode):
    model = make_model()
    optimizer = ours(model.parameters(), **options, weight_decay=0.1)
    with pytest.raises(ValueError, match=r"\A[^\n]*twice[^\n]*\Z"):
        Regularizer(model, L2(0.1), mode=mode).attach(optimizer)
    undecayed(ours, model.parameters(), **options)


# -- faults that others' decoupled optimizers were seen to have ---------------------------------------------------


@each_decoupled_or_made
def test_a_group_may_be_added_while_a_scheduler_is_at_work(ours, base, options):
    for coupling in COUPLINGS:
        optimizer = ours([a_weight()], **options, weight_decay=0.1, coupling=coupling)
        scheduler = LambdaLR(optimizer, lambda step: 0.5**step)
        one_step(optimizer)
        scheduler.step()
        optimizer.add_param_group({"params": [added := a_weight()], "lr": 0.2})
        one_step(optimizer)  # not: KeyError, initial_lr
        assert_close(added.item(), 1 - 0.1 * {"lr": 0.2, "corrected": 0.2}.get(coupling, 1.0))


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_sgdw_shrinks_weights_in_proportion_instead_of_subtracting_a_constant(coupling):
    weights = nn.Parameter(torch.tensor([1.0, 10.0, -100.0], dtype=torch.float64))
    one_step(SGDW([weights], lr=0.1, weight_decay=0.1, coupling=coupling))
    assert_close(weights.detach() / weights[0].item(), torch.tensor([1.0, 10.0, -100.0], dtype=torch.float64))


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_the_first_step_of_adamw_has_the_size_of_adams_whatever_the_decay(coupling):
    weights = nn.Parameter(torch.tensor([1.0, 10.0], dtype=torch.float64))
    optimizer = AdamW([weights], lr=0.1, weight_decay=0.1, coupling=coupling)
    weights.grad = torch.tensor([3.0, -0.001], dtype=torch.float64)
    optimizer.step()
    kept = 1 - 0.1 * {"lr": 0.1, "corrected": 0.1}.get(coupling, 1.0)
    assert_close(weights.detach(), torch.tensor([kept - 0.1, 10 * kept + 0.1], dtype=torch.float64), tolerance=1e-5)


# -- closures, hooks, scalers -------------------------------------------------------------------------------------


@each_decoupled_or_made
@each_form
def test_a_closure_changes_nothing_and_its_loss_is_returned(ours, base, options, form):
    results = []
    for closure in (True, False):
        model = make_model()
        optimizer = ours(each_couplings_share(model), **options, **form, weight_decay=0.1)
        results.append(train(model, optimizer, steps=5, closure=closure))
    assert_bit_equal(*results)
    assert optimizer.step(lambda: 3.5) == 3.5
    assert optimizer.step() is None


@each_decoupled_or_made
@each_form
def test_step_hooks_fire_once_per_step(ours, base, options, form):
    base([a_weight()], **options)  # so that the base's step is wrapped in a firing of hooks itself
    fired = []
    optimizer = ours([w := a_weight()], **options, **form, weight_decay=0.1)
    with torch.no_grad():
        w.add_(1)
    optimizer.register_step_pre_hook(lambda *_: fired.append(("pre", w.item())))
    optimizer.register_step_post_hook(lambda *_: fired.append(("post", w.item())))
    one_step(optimizer)
    assert fired == [("pre", 2.0), ("post", w.item())]
    assert w.item() < 2.0


each_scaled = pytest.mark.parametrize(
    ("ours", "base", "options"),
    [row for row in KERNELS.values() if not row[2].get("foreach")],
    ids=[name for name, row in KERNELS.items() if not row[2].get("foreach")],
)


@each_scaled
@each_form
def test_a_scaler_changes_nothing_but_skips_infinite_steps(ours, base, options, form):
    results = []
    for scaled in (True, False):
        model = make_model(dtype=torch.float32)
        optimizer = ours(each_couplings_share(model), **options, **form, weight_decay=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
        train(model, optimizer, steps=3, scaler=scaler)
        if scaled:
            before = weights_of(model)
            scaler.scale(model(make_data(torch.float32)[0]).sum() * torch.inf).backward()
            scaler.step(optimizer)
            scaler.update()
            assert_bit_equal(weights_of(model), before)
        results.append(train(model, optimizer, steps=3, scaler=scaler))
    assert_close(*results, tolerance=1e-5)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "not fused"])
def test_a_step_that_the_scaler_skips_counts_for_the_schedule_of_a_fused_optimizer_only(fused):
    optimizer = SGDW([w := a_weight()], lr=0.1, weight_decay=0.1, decay_schedule=cosine(steps=10), fused=fused)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(w.sum() * torch.inf).backward()
    scaler.step(optimizer)
    assert w.item() == 1.0
    assert optimizer.param_groups[0]["decay_steps"] == int(fused)  # to know better would be to wait for the device


# -- saving and copying -------------------------------------------------------------------------------------------


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


# -- weights of every kind ----------------------------------------------------------------------------------------


@each_decoupled_or_made
@each_form
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_precision_decay_as_those_of_double_do(ours, base, options, form, dtype):
    if isinstance(base([a_weight()]).defaults.get("eps"), float):
        options = {**options, "eps": 1e-3}  # torch's own divide 0 by 0 if it rounds to 0
    results = []
    for kind in (dtype, torch.float64):
        groups = [
            {"params": [nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=kind))], "coupling": coupling}
            for coupling in COUPLINGS
        ]
        optimizer = ours(groups, **options, **form, weight_decay=0.25)
        for group in groups:
            group["params"][0].data.add_(1)
        one_step(optimizer)
        results.append([group["params"][0].detach() for group in groups])
    assert {w.dtype for w in results[0]} == {dtype}
    assert_close([w.double() for w in results[0]], results[1], tolerance=torch.finfo(dtype).eps)


@each_decoupled_or_made
@each_form
def test_empty_and_dimensionless_weights_are_taken(ours, base, options, form):
    for coupling in COUPLINGS:
        empty, single = (nn.Parameter(torch.full(shape, 2.0)) for shape in ((0, 3), ()))
        optimizer = ours([empty, single], **options, **form, coupling=coupling, weight_decay=0.5)
        single.data.add_(1)
        if base is torch.optim.Adafactor:  # torch's own takes no empty ones
            empty.requires_grad_(False)
            single.grad = torch.zeros(())
            optimizer.step()
        else:
            one_step(optimizer)
        assert 0 < single.item() < 3
        assert empty.shape == (0, 3)


@each_decoupled_or_made
@each_form
def test_a_huge_decay_stays_finite_and_a_rate_of_zero_moves_nothing(ours, base, options, form):
    w, still = a_weight(2.0), a_weight(2.0)
    huge = ours([w], **options, **form, weight_decay=1e30)
    idle = ours([still], **{**options, "lr": 0.0}, **form, weight_decay=0.5)
    w.data.add_(1)
    still.data.add_(1)
    one_step(huge)
    one_step(idle, 0.0 if base in (torch.optim.Rprop, torch.optim.Adafactor) else 1.0)
    assert math.isfinite(w.item())
    assert still.item() == 3.0


@each_decoupled
@each_coupling
def test_tied_weights_decay_once_and_frozen_ones_not_at_all(ours, base, options, coupling):
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    model[2].weight.requires_grad_(False)
    tied, frozen = model[0].weight.detach().clone(), model[2].weight.detach().clone()
    optimizer = ours(model.parameters(), **options, coupling=coupling, weight_decay=0.5)
    (model(torch.ones(1, 3)).sum() * 0).backward()
    optimizer.step()
    kept = 1 - 0.5 * {"lr": options["lr"], "corrected": options["lr"]}.get(coupling, 1.0)
    assert_close(model[0].weight.detach(), tied * kept, tolerance=1e-6)
    assert_bit_equal(model[2].weight.detach(), frozen)


# -- the mixin ----------------------------------------------------------------------------------------------------


def test_the_mixin_decouples_another_optimizer():
    class AdadeltaW(DecoupledDecay, torch.optim.Adadelta):
        pass

    w = a_weight()
    optimizer = AdadeltaW([w], lr=0.1, weight_decay=0.5)
    one_step(optimizer)
    assert_close(w.item(), 0.95)
    assert optimizer.state[w]["square_avg"].item() == 0


@each_decoupled_or_made
def test_it_is_its_base_to_isinstance_and_takes_its_arguments(ours, base, options):
    optimizer = ours(make_model().named_parameters(), **options, maximize=True)
    assert isinstance(optimizer, base)
    assert optimizer.defaults.items() >= options.items()


@each_decoupled
@pytest.mark.parametrize("bad", [{"lr": -1.0}, {"weight_decay": -0.1}], ids=str)
def test_what_the_base_refuses_is_refused_in_its_words(ours, base, options, bad):
    words = []
    for kind in (ours, base):
        with pytest.raises(ValueError, match="Invalid") as error:
            kind([a_weight()], **{**options, **bad})
        words.append(str(error.value))
    assert words[0] == words[1]
