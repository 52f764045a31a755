"""What the decoupled optimizers leave alone, and that they save, copy and nest like any other."""

import copy
import io
import pickle

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from tests.cases import DECOUPLED, each_coupling, each_decoupled, each_implementation
from tests.helpers import assert_bit_equal, assert_close, assert_differs, make_data, make_model, train, weights_of
from tests.unit.training import a_weight, one_step
from torchreg.optim import SGDW, AdamW, DecoupledDecay

# -- what is left alone -------------------------------------------------------------------------------------------


@each_decoupled
@each_implementation
@each_coupling
def test_the_decay_never_enters_the_gradient(ours, base, options, implementation, coupling):
    # Not "the gradient stays as it is": foreach SGD with Nesterov momentum writes into it by itself.
    gradients = []
    for kind, extra in ((ours, {"coupling": coupling, "weight_decay": 0.1}), (base, {"weight_decay": 0})):
        optimizer = kind([w := a_weight()], **options, **implementation, **extra)
        for value in (1.0, 2.0):
            one_step(optimizer, value)
        gradients.append(w.grad)
    assert_bit_equal(*gradients)


@each_decoupled
@each_coupling
def test_weights_without_a_gradient_do_not_decay(ours, base, options, coupling):
    still, moving = a_weight(), a_weight()
    optimizer = ours([still, moving], **options, coupling=coupling, weight_decay=0.1)
    moving.grad = torch.zeros(1, dtype=torch.float64)
    optimizer.step()
    assert still.item() == 1.0
    assert moving.item() < 1.0


@each_coupling
def test_the_moments_never_see_the_decay(coupling):
    w = a_weight()
    optimizer = AdamW([w], weight_decay=0.1, coupling=coupling)
    one_step(optimizer)
    assert optimizer.state[w]["exp_avg"].item() == 0


def test_the_groups_show_their_decay_even_after_a_step_that_raised():
    optimizer = SGDW([w := a_weight()], lr=0.1, weight_decay=0.4)
    w.grad = torch.ones(1, dtype=torch.float64).to_sparse()
    optimizer.param_groups[0]["nesterov"] = "yes"  # makes the base's own step fail
    optimizer.param_groups[0]["momentum"] = "no"
    with pytest.raises(TypeError):
        optimizer.step()
    assert optimizer.param_groups[0]["weight_decay"] == 0.4


# -- closures, hooks, scalers -------------------------------------------------------------------------------------


@each_decoupled
@each_coupling
def test_a_closure_changes_nothing_and_its_loss_is_returned(ours, base, options, coupling):
    results = []
    for closure in (True, False):
        model = make_model()
        optimizer = ours(model.parameters(), **options, coupling=coupling, weight_decay=0.1)
        results.append(train(model, optimizer, steps=5, closure=closure))
    assert_bit_equal(*results)
    assert optimizer.step(lambda: 3.5) == 3.5
    assert optimizer.step() is None


@each_decoupled
@each_coupling
def test_step_hooks_fire_once_per_step(ours, base, options, coupling):
    base([a_weight()], **options)  # so that the base's step is wrapped in a firing of hooks itself
    fired = []
    optimizer = ours([w := a_weight()], **options, coupling=coupling, weight_decay=0.1)
    optimizer.register_step_pre_hook(lambda *_: fired.append(("pre", w.item())))
    optimizer.register_step_post_hook(lambda *_: fired.append(("post", w.item())))
    one_step(optimizer)
    assert fired == [("pre", 1.0), ("post", w.item())]
    assert w.item() < 1.0


@each_decoupled
@each_coupling
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "not fused"])
def test_a_scaler_changes_nothing_but_skips_infinite_steps(ours, base, options, coupling, fused):
    results = []
    for scaled in (True, False):
        model = make_model(dtype=torch.float32)
        optimizer = ours(model.parameters(), **options, coupling=coupling, weight_decay=0.1, fused=fused)
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


# -- saving and copying -------------------------------------------------------------------------------------------


@each_decoupled
@each_coupling
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))], ids=["copy", "pickle"]
)
def test_a_copy_goes_on_alike_and_apart(ours, base, options, coupling, duplicate):
    model = make_model()
    optimizer = ours(model.parameters(), **options, coupling=coupling, weight_decay=0.1)
    train(model, optimizer, steps=3)
    twin, its_optimizer = duplicate((model, optimizer))
    its_optimizer.add_param_group({"params": [a_weight()]})  # the default coupling is copied, too
    assert its_optimizer.param_groups[1]["coupling"] == coupling
    before = weights_of(model)
    after = train(twin, its_optimizer, steps=3)
    assert_bit_equal(weights_of(model), before)
    assert_bit_equal(train(model, optimizer, steps=3), after)


@each_decoupled
@each_coupling
def test_training_resumes_from_a_file_under_a_schedule(ours, base, options, coupling):
    def setting():
        model = make_model()
        optimizer = ours(model.parameters(), **options, coupling=coupling, weight_decay=0.1)
        return model, optimizer, LambdaLR(optimizer, lambda step: 0.9**step)

    def go(model, optimizer, scheduler):
        for _ in range(3):
            train(model, optimizer, steps=1)
            scheduler.step()
        return weights_of(model)

    halfway, resumed = setting(), setting()
    go(*halfway)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in halfway], file)
    file.seek(0)
    for part, state in zip(resumed, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    assert_bit_equal(go(*resumed), go(*halfway))


@each_implementation
def test_a_checkpoint_of_torchs_adamw_goes_on_bit_for_bit(implementation):
    results = []
    for kind in (AdamW, torch.optim.AdamW):
        model = make_model()
        first = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1, **implementation)
        train(model, first, steps=5)
        second = kind(model.parameters())
        second.load_state_dict(first.state_dict())
        results.append(train(model, second, steps=5))
    assert_bit_equal(*results)


@each_coupling
def test_a_checkpoint_goes_into_its_base_class_too(coupling):
    model = make_model()
    ours = SGDW(model.parameters(), lr=0.1, momentum=0.9, coupling=coupling)
    train(model, ours, steps=2)
    plain = torch.optim.SGD(model.parameters(), lr=0.1)
    plain.load_state_dict(ours.state_dict())
    before = weights_of(model)
    assert_differs(train(model, plain, steps=1), before)


# -- the mixin ----------------------------------------------------------------------------------------------------


def test_the_mixin_decouples_another_optimizer():
    class RMSpropW(DecoupledDecay, torch.optim.RMSprop):
        pass

    w = a_weight()
    optimizer = RMSpropW([w], lr=0.1, weight_decay=0.5)
    one_step(optimizer)
    assert_close(w.item(), 0.95)
    assert optimizer.state[w]["square_avg"].item() == 0


@each_decoupled
def test_it_is_its_base_to_isinstance_and_takes_its_arguments(ours, base, options):
    optimizer = ours(make_model().named_parameters(), **options, maximize=True)
    assert isinstance(optimizer, base)
    assert optimizer.defaults.items() >= options.items()
    assert set(DECOUPLED) >= {"SGDW", "AdamW"}


@pytest.mark.parametrize("options", [{"lr": -1.0}, {"weight_decay": -0.1}], ids=str)
@pytest.mark.parametrize("kind", [SGDW, AdamW])
def test_what_the_base_refuses_is_refused(kind, options):
    with pytest.raises(ValueError, match="Invalid"):
        kind([a_weight()], **options)
