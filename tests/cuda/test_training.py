"""A training on CUDA is the one on the CPU: every penalty, mode, optimizer, and what a checkpoint carries across."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.cases import MODES, STEP_MODES, each_case_and_mode, each_constraint, each_penalty
from tests.helpers import (
    assert_bit_equal,
    assert_close,
    assert_differs,
    engaged,
    make_data,
    make_model,
    through_a_file,
    train,
    weights_of,
)
from tests.optimizers import COUPLINGS, FORMS, KERNELS, OPTIMIZERS
from torchreg import L1, L2, L2SP, ElasticNet, Huber, LogSum, Regularizer, Stacked, everything, linear
from torchreg.optim import ProxAdam, ProxSGD

pytestmark = [pytest.mark.cuda, pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")]
BOTH = ("cuda", "cpu")


def on_cpu(state):
    return {name: value.cpu() for name, value in state.items()}


def trained(device, make_optimizer, penalty, mode, steps=6, dtype=torch.float64, **options):
    model = make_model(dtype=dtype).to(device)
    optimizer = make_optimizer(model.parameters())
    criterion = engaged(Regularizer(model, penalty, mode=mode, **options), optimizer)
    return on_cpu(train(model, optimizer, steps, criterion=criterion))


def sgd(params, **options):
    return torch.optim.SGD(params, **{"lr": 0.05, "momentum": 0.9} | options)


@each_case_and_mode
def test_each_penalty_in_each_mode(case, mode):
    assert_close(*(trained(device, sgd, case.penalty, mode) for device in BOTH), tolerance=1e-9)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_each_optimizer(make_optimizer, mode):
    assert_close(*(trained(device, make_optimizer, L1(0.05) + L2(0.1), mode) for device in BOTH), tolerance=1e-9)


@pytest.mark.parametrize("lr", [0.01, torch.tensor(0.01)], ids=["number", "tensor"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fused", [True, False])
def test_an_optimizer_that_a_graph_can_hold(mode, fused, lr):
    """With ``capturable`` the count of steps, and the learning rate where it is a tensor, are float32 on the device."""

    def capturable(params):
        params = list(params)
        held = lr.to(params[0].device) if isinstance(lr, torch.Tensor) else lr
        return torch.optim.AdamW(params, lr=held, weight_decay=0, capturable=params[0].is_cuda, fused=fused)

    assert_close(*(trained(device, capturable, L1(0.05) + L2(0.1), mode) for device in BOTH), tolerance=1e-5)


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize(("ours", "base", "options"), KERNELS.values(), ids=KERNELS.keys())
def test_each_class_with_decoupled_decay(ours, base, options, coupling):
    if options.get("fused"):
        model = make_model().to("cuda")
        try:
            train(model, base(model.parameters(), **options), 1)
        except RuntimeError as error:
            pytest.skip(str(error))  # torch has no such kernel for CUDA
    results = []
    for device in BOTH:
        model = make_model().to(device)
        optimizer = ours(model.parameters(), weight_decay=0.1, coupling=coupling, **options)
        results.append(on_cpu(train(model, optimizer, 5)))
    assert_close(*results, tolerance=1e-9)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_each_form_of_decay(form):
    results = []
    for device in BOTH:
        ours = KERNELS["AdamW-fused"][0]
        model = make_model().to(device)
        results.append(on_cpu(train(model, ours(model.parameters(), lr=0.01, weight_decay=0.1, **form), 5)))
    assert_close(*results, tolerance=1e-9)


@pytest.mark.parametrize("kind", [ProxSGD, ProxAdam])
@each_penalty
def test_each_proximal_optimizer(case, kind):
    if not case.is_proximal or case.is_steep:
        pytest.skip("has no proximal step, or one that jumps")
    results = []
    for device in BOTH:
        model = make_model().to(device)
        try:
            optimizer = kind(model.parameters(), case.penalty, lr=0.01)
        except ValueError as error:
            pytest.skip(str(error))
        results.append(on_cpu(train(model, optimizer, 5)))
    assert_close(*results, tolerance=1e-9)


@each_constraint
def test_each_constraint(case):
    assert_close(*(trained(device, sgd, case.constraint, "prox") for device in BOTH), tolerance=1e-9)


@pytest.mark.parametrize("mode", STEP_MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("compile", [False, True])
def test_triton_kernels_make_the_step_of_double_precision_rounded(mode, dtype, compile):
    start = torch.linspace(-1, 1, 600 * 601, dtype=torch.float64).to(dtype)

    def stepped(device, dtype, **options):
        weight = nn.Parameter(start.detach().to(device, dtype).reshape(600, 601).clone())
        weight.grad = (weight.detach() * 0.25).clone()
        optimizer = torch.optim.SGD([weight], lr=0.5)
        Regularizer(nn.ParameterList([weight]), L1(0.1) + L2(0.3), mode=mode, **options).attach(optimizer)
        optimizer.step()
        return weight.detach().cpu()

    ours, expected = stepped("cuda", dtype, compile=compile), stepped("cpu", torch.float64)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(ours.double(), expected, rtol=4 * eps, atol=2 * eps)


@pytest.mark.parametrize("penalty", [L1(0.1), ElasticNet(0.1, l1_ratio=0.3), Huber(0.2), LogSum(0.1)], ids=repr)
def test_triton_kernels_of_the_value_and_its_gradient(penalty):
    weight = torch.linspace(-1, 1, 600 * 601, dtype=torch.float64).reshape(600, 601)

    def found(device, **options):
        model = nn.ParameterList([nn.Parameter(weight.to(device))])
        value = Regularizer(model, penalty, mode="loss", **options).value()
        value.backward()
        return value.detach().cpu(), model[0].grad.cpu()

    assert_close(found("cuda", compile=True), found("cpu"), tolerance=1e-9)


@pytest.mark.parametrize("amsgrad", [False, True])
def test_the_triton_kernel_of_a_whole_proximal_step(amsgrad):
    start = torch.linspace(-1, 1, 600 * 601, dtype=torch.float64).reshape(600, 601)

    def stepped(device, compile):
        weight = nn.Parameter(start.to(device).clone())
        optimizer = ProxAdam([weight], L1(0.1), lr=0.1, amsgrad=amsgrad, compile=compile)
        for step in range(4):
            weight.grad = (0.25 * weight.detach() + 0.1 * step).clone()
            optimizer.step()
        return weight.detach().cpu()

    ours = stepped("cuda", compile=True)
    assert_close(ours, stepped("cpu", compile=False), tolerance=1e-6)  # torch counts its steps in single precision
    assert (ours == 0).any()


@pytest.mark.parametrize(("there", "back"), [BOTH, BOTH[::-1]])
@pytest.mark.parametrize("mode", STEP_MODES)
def test_a_training_goes_on_on_the_other_device(mode, there, back):
    def begun(device):
        model = make_model().to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0)
        regularizer = Regularizer(model, L2SP(0.1), mode=mode, schedule=linear(8), select=everything).attach(optimizer)
        return model, optimizer, regularizer

    straight = begun("cpu")
    train(*straight[:2], 8)
    first, second = begun(there), begun(back)
    train(*first[:2], 4)
    for old, new in zip(first[:2], second[:2], strict=True):
        new.load_state_dict(through_a_file(old.state_dict()))
    train(*second[:2], 4)
    assert {param.device.type for param in second[0].parameters()} == {back}
    assert_close(on_cpu(second[0].state_dict()), on_cpu(straight[0].state_dict()), tolerance=1e-9)


@pytest.mark.parametrize("mode", STEP_MODES)
def test_a_model_moved_after_the_regularizer_was_made(mode):
    model = make_model()
    regularizer = Regularizer(model, L2SP(0.1), mode=mode, select=everything)
    model.to("cuda")
    optimizer = sgd(model.parameters())
    regularizer.attach(optimizer)
    assert_close(on_cpu(train(model, optimizer, 4)), trained("cpu", sgd, L2SP(0.1), mode, 4, select=everything))


@pytest.mark.parametrize("is_moved_later", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_strengths_of_the_members_of_a_stack(mode, is_moved_later):
    """They are given on the CPU; a member trains as alone."""
    strengths = [0.0, 0.1, 0.5]
    stacked = Stacked([make_model() for _ in strengths])
    if not is_moved_later:
        stacked.to("cuda")
    regularizer = Regularizer(stacked, L1(1.0) + L2(1.0), mode=mode)
    regularizer.scale = torch.tensor(strengths)
    stacked.to("cuda")
    optimizer = sgd(stacked.parameters())
    if mode != "loss":
        regularizer.attach(optimizer)
    x, y = (tensor.cuda() for tensor in make_data())
    for _ in range(4):
        optimizer.zero_grad()
        loss = stacked.per_member(F.mse_loss)(stacked(x), y)
        (loss + (regularizer.value() if mode == "loss" else 0.0)).sum().backward()
        optimizer.step()
    for member, strength in zip(stacked.members(), strengths, strict=True):
        assert_close(
            on_cpu(weights_of(member)), trained("cpu", sgd, L1(strength) + L2(strength), mode, 4), tolerance=1e-6
        )


def test_a_model_over_two_devices():
    """Its first layer on CUDA and its last one on the CPU, as a pipeline has them."""

    class Apart(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = make_model()
            self.model[0].to("cuda")

        def forward(self, x):
            return self.model[1:](self.model[0](x.cuda()).cpu()).to(x.device)

    for mode in MODES:
        model = Apart()
        optimizer = sgd(model.parameters(), foreach=False)
        criterion = engaged(Regularizer(model, L1(0.05) + L2(0.1), mode=mode), optimizer)
        ours = {
            name.removeprefix("model."): value
            for name, value in on_cpu(train(model, optimizer, 4, criterion=criterion)).items()
        }
        assert_close(ours, trained("cpu", sgd, L1(0.05) + L2(0.1), mode, 4), tolerance=1e-9)


def test_a_penalty_of_strength_0_leaves_every_bit_alone():
    plain = make_model().to("cuda")
    expected = train(plain, sgd(plain.parameters()), 4)
    for mode in MODES:
        assert_bit_equal(trained("cuda", sgd, L1(0.0) + L2(0.0), mode, 4), on_cpu(expected))
    assert_differs(trained("cuda", sgd, L1(0.1), "prox", 4), on_cpu(expected))
