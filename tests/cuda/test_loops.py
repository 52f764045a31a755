"""The loops that only CUDA has: float16 with a GradScaler, captured graphs, compiled steps, no synchronization."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchreg.nn
from tests.cases import MODES, STEP_MODES, each_penalty
from tests.helpers import (
    FEATURES,
    a_step,
    assert_close,
    assert_differs,
    engaged,
    make_data,
    make_model,
    train,
    weights_of,
)
from tests.optimizers import OPTIMIZERS
from torchreg import (
    L1,
    L2,
    SLOPE,
    SRIP,
    ActivityRegularizer,
    Confidence,
    KLSparsity,
    Nuclear,
    Regularizer,
    SpectralNorm,
    ZLoss,
    linear,
)
from torchreg.optim import AdamW, ProxAdam, ProxSGD

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.filterwarnings("ignore:Synchronization debug mode"),
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores"),
    pytest.mark.filterwarnings("ignore:The CUDA Graph is empty"),  # what torch captures first, to have a pool of memory
]
PENALTY = L1(0.05) + L2(0.1)


def data(dtype=torch.float32):
    return tuple(tensor.cuda() for tensor in make_data(dtype))


def model_on_cuda(dtype=torch.float32):
    return make_model(dtype=dtype).to("cuda")


@contextlib.contextmanager
def no_synchronization():
    """Raises where the CPU would wait for the device."""
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


# -- automatic mixed precision ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["SGD-momentum", "AdamW-foreach", "AdamW-fused"])
def test_under_a_scaler_the_penalty_counts_once(name, mode):
    results = []
    for enabled in (True, False):
        model = model_on_cuda(torch.float64)
        optimizer = OPTIMIZERS[name](model.parameters())
        criterion = engaged(Regularizer(model, PENALTY, mode=mode), optimizer)
        scaler = torch.amp.GradScaler("cuda", init_scale=2.0**12, growth_interval=2, enabled=enabled)
        results.append(train(model, optimizer, 6, criterion=criterion, scaler=scaler))
    assert_close(*results, tolerance=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_is_near_single_precision(dtype, mode):
    results = []
    for enabled in (True, False):
        model, (x, y) = model_on_cuda(), data()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, fused=True)
        criterion = engaged(Regularizer(model, PENALTY, mode=mode), optimizer)
        scaler = torch.amp.GradScaler("cuda", enabled=enabled and dtype == torch.float16)
        for _ in range(5):
            optimizer.zero_grad()
            with torch.autocast("cuda", dtype, enabled=enabled):
                loss = criterion(model(x), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        results.append(weights_of(model))
    assert_close(*results, tolerance=5e-3)


@pytest.mark.parametrize("mode", STEP_MODES)
@pytest.mark.parametrize("fused", [True, False])
def test_a_step_that_the_scaler_skips_leaves_the_weights_alone(mode, fused):
    model = model_on_cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0, fused=fused)
    Regularizer(model, PENALTY, mode=mode).attach(optimizer)
    scaler = torch.amp.GradScaler("cuda", init_scale=4.0)
    before = weights_of(model)
    scaler.scale(model(data()[0]).sum() * torch.inf).backward()
    scaler.step(optimizer)
    scaler.update()
    assert_close(weights_of(model), before, tolerance=0)
    assert scaler.get_scale() == 2.0


@pytest.mark.filterwarnings("ignore:.* rounds away")
@pytest.mark.parametrize("mode", MODES)
@each_penalty
def test_weights_of_half_precision_at_the_default_scale_stay_finite(case, mode):
    if case.is_steep or (mode == "prox" and not case.is_proximal):
        pytest.skip("not in this mode")
    model = model_on_cuda(torch.float16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, fused=True)
    criterion = engaged(Regularizer(model, case.penalty, mode=mode), optimizer)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**12)
    x, y = data(torch.float16)
    for _ in range(3):
        optimizer.zero_grad()
        scaler.scale(criterion(model(x), y)).backward()
        scaler.step(optimizer)  # a fused one divides by the scale itself
        scaler.update()
    assert all(value.isfinite().all() for value in weights_of(model).values())


# -- no synchronization -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@each_penalty
def test_a_step_waits_for_nothing(case, mode):
    if mode == "prox" and not case.is_proximal:
        pytest.skip("has no proximal operator")
    if isinstance(case.penalty, Nuclear | SpectralNorm | SRIP):
        pytest.skip("torch.linalg waits for the device itself, to look whether the decomposition converged")
    if mode == "prox" and isinstance(case.penalty, SLOPE):
        pytest.skip("which weights become equal is found by numbers that the CPU reads")
    model = model_on_cuda()
    step = a_step(model, Regularizer(model, case.penalty, mode=mode, schedule=linear(8)), data())
    with no_synchronization():
        step()
        step()


@pytest.mark.parametrize(
    "penalty", [L1(0.1), KLSparsity(0.1, squash="sigmoid"), KLSparsity(0.1, squash="tanh"), ZLoss(0.1), Confidence(0.1)]
)
def test_a_penalty_on_activations_waits_for_nothing(penalty):
    model, (x, _) = nn.Sequential(nn.Linear(FEATURES, 4), nn.ReLU()).cuda(), data()
    activity = ActivityRegularizer(model, penalty, nn.ReLU)
    for context in (contextlib.nullcontext(), no_synchronization()):
        with context:
            model(x)
            activity.value().backward()


@pytest.mark.parametrize("mode", STEP_MODES)
def test_a_step_under_a_scaler_waits_for_nothing_more(mode):
    """With a fused optimizer the scaler waits for nothing either."""
    model, (x, y) = model_on_cuda(), data()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0, fused=True)
    Regularizer(model, PENALTY, mode=mode).attach(optimizer)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**12)

    def step():
        optimizer.zero_grad()
        scaler.scale(F.mse_loss(model(x), y)).backward()
        scaler.step(optimizer)
        scaler.update()

    for _ in range(3):
        step()
    with no_synchronization():
        step()


def proximal(kind):
    return lambda params: kind(params, L1(0.05), lr=0.01)


OURS = {
    "AdamW": lambda params: AdamW(params, lr=0.01, weight_decay=0.1, fused=True),
    "AdamW, cautious": lambda params: AdamW(params, lr=0.01, weight_decay=0.1, cautious=True),
    "ProxSGD": proximal(ProxSGD),
    "ProxAdam": proximal(ProxAdam),
}


@pytest.mark.parametrize("make_optimizer", OURS.values(), ids=OURS.keys())
def test_steps_of_our_own_optimizers_wait_for_nothing(make_optimizer):
    model, (x, y) = model_on_cuda(), data()
    optimizer = make_optimizer(model.parameters())

    def step():
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()

    for _ in range(3):
        step()
    with no_synchronization():
        step()


LAYERS = [
    lambda: torchreg.nn.Dropout(0.5),
    lambda: torchreg.nn.Dropout(0.3, generator=torch.Generator("cuda")),
    lambda: torchreg.nn.AlphaDropout(0.3, generator=torch.Generator("cuda")),
    lambda: torchreg.nn.GaussianDropout(0.3),
    lambda: torchreg.nn.StochasticDepth(nn.Linear(6, 6), 0.3),
    lambda: torchreg.nn.DropConnect(nn.Linear(6, 6), 0.3),
    lambda: torchreg.nn.ConcreteDropout(nn.Linear(6, 6)),
    lambda: torchreg.nn.VariationalDropout(nn.Linear(6, 6)),
    lambda: torchreg.nn.HardConcrete(nn.Linear(6, 6)),
]


@pytest.mark.parametrize("make_layer", LAYERS)
def test_a_layer_waits_for_nothing(make_layer):
    layer = make_layer().to("cuda")
    x = torch.randn(32, 6, device="cuda", requires_grad=True)
    layer(x).sum().backward()
    with no_synchronization():
        layer(x).sum().backward()


# -- graphs and compiled steps ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("compile", [False, True])
def test_a_captured_step_is_the_eager_one(mode, compile):
    def begun():
        model, (x, y) = model_on_cuda(), data()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0, capturable=True, fused=True)
        criterion = engaged(Regularizer(model, PENALTY, mode=mode, compile=compile), optimizer)

        def step():
            optimizer.zero_grad(set_to_none=True)
            criterion(model(x), y).backward()
            optimizer.step()

        return model, step

    expected, step = begun()
    for _ in range(8):
        step()
    model, step = begun()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for _ in range(5):
        graph.replay()
    assert_close(weights_of(model), weights_of(expected), tolerance=1e-5)


@pytest.mark.parametrize("options", [{}, {"mode": "reduce-overhead"}], ids=["default", "reduce-overhead"])
@pytest.mark.parametrize("mode", MODES)
def test_a_compiled_step_is_the_eager_one(mode, options):
    results = []
    for compiled in (False, True):
        model, (x, y) = model_on_cuda(), data()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0)
        criterion = engaged(Regularizer(model, PENALTY, mode=mode), optimizer)

        def step(model=model, x=x, y=y, optimizer=optimizer, criterion=criterion):
            optimizer.zero_grad(set_to_none=True)
            criterion(model(x), y).backward()
            optimizer.step()

        run = torch.compile(step, **options) if compiled else step
        for _ in range(6):
            run()
        results.append(weights_of(model))
    assert_close(*results, tolerance=1e-5)


# -- masks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("own", [False, True], ids=["torch's generator", "a generator"])
def test_masks_have_the_rate_and_the_seed(p, dtype, own):
    def drawn(seed):
        torch.manual_seed(seed)
        generator = torch.Generator("cuda").manual_seed(seed) if own else None
        x = torch.ones(1 << 20, device="cuda", dtype=dtype, requires_grad=True)
        y = torchreg.nn.Dropout(p, generator=generator)(x)
        y.sum().backward()
        assert torch.equal(x.grad, y.detach())  # the mask is the same both ways
        return y.detach()

    first = drawn(3)
    kept = (first != 0).double().mean().item()
    assert abs(kept - (1 - p)) < 5 * (p * (1 - p) / (1 << 20)) ** 0.5 + 2**-8
    assert_close(first[first != 0].double().mean().item(), 1 / (1 - p), tolerance=1e-2)
    assert torch.equal(drawn(3), first)
    assert_differs(drawn(4), first)


def test_seeded_layers_draw_alike_after_a_move_to_cuda():
    def drawn():
        model = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 8), nn.Dropout(0.5)).to("cuda")
        torchreg.nn.replace_dropout(model, seed=3)
        return [layer(torch.ones(50, 8, device="cuda")) for layer in (model[0], model[2])]

    first, second = drawn(), drawn()
    assert torch.equal(first[0], second[0])
    assert_differs(first[0], first[1])


@pytest.mark.parametrize("options", [{}, {"mode": "reduce-overhead"}], ids=["default", "reduce-overhead"])
def test_compiled_dropout_drops_at_its_rate_anew_each_time(options):
    layer = torch.compile(torchreg.nn.Dropout(0.25), **options)
    x = torch.ones(1 << 18, device="cuda")
    first, second = layer(x).clone(), layer(x).clone()
    assert_differs(first, second)
    assert abs((first == 0).double().mean().item() - 0.25) < 0.01


def test_uncertainty_by_monte_carlo():
    model = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 2)).to("cuda").eval()
    x = torch.randn(32, 6, device="cuda")
    with torchreg.nn.mc_dropout(model) as mc:
        prediction = mc(x, passes=64)
    assert prediction.mean.is_cuda
    assert (prediction.variance > 0).all()


# -- processes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_one_rank_of_nccl(mode, tmp_path):
    results = []
    for wrap in (torch.nn.parallel.DistributedDataParallel, lambda model: model):
        model = model_on_cuda(torch.float64)
        if not results:
            torch.distributed.init_process_group("nccl", f"file://{tmp_path}/store", rank=0, world_size=1)
        try:
            wrapped = wrap(model)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
            criterion = engaged(Regularizer(wrapped, PENALTY, mode=mode), optimizer)
            train(wrapped, optimizer, 4, criterion=criterion)
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
        results.append(weights_of(model))
    assert_close(*results)
