"""Penalties on what a function computes from several parameters: value and gradients are those of autograd."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from tests.helpers import assert_bit_equal, assert_close, by_pickle
from torchreg import L1, L2, L2SP, Effective, GroupLasso, MaxNorm, Nuclear, Regularizer, Sparsest, Stacked, linear
from torchreg.optim import ProxSGD
from torchreg.penalties import Complexity


class LoRA(nn.Module):
    """A linear layer with an update of low rank."""

    def __init__(self, inputs, outputs, rank=2, scale=0.5):
        super().__init__()
        self.base = nn.Linear(inputs, outputs)
        self.base.requires_grad_(False)
        self.A = nn.Parameter(torch.randn(rank, inputs))
        self.B = nn.Parameter(torch.randn(outputs, rank))
        self.scale = scale

    def forward(self, x):
        return self.base(x) + self.scale * x @ self.A.mT @ self.B.mT


def update(layer):
    return layer.scale * layer.B @ layer.A


def adapted():
    torch.manual_seed(0)
    return nn.Sequential(LoRA(4, 6), nn.Tanh(), LoRA(6, 3)).double()


def product(model):
    return model[2].weight @ model[0].weight


def two_layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Identity(), nn.Linear(6, 3)).double()


class Parallel(nn.Module):
    """Two layers of one input; a part of the second is tied to the first."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(4, 3)
        self.again = self.first

    def forward(self, x):
        return self.first(x) + self.second(x)


def total(model):
    return model.first.weight + model.second.weight + model.again.weight


def parallel():
    torch.manual_seed(0)
    return Parallel().double()


def all_updates(model):
    return [layer.scale * layer.B @ layer.A for layer in (model[0], model[2])]


# What is made, the effective penalty, and the effective weights written out.
CASES = {
    "LoRA": (adapted, lambda penalty: Effective(penalty, update, modules=LoRA), all_updates),
    "product": (two_layers, lambda penalty: Effective(penalty, product), lambda m: [m[2].weight @ m[0].weight]),
    "sum": (
        parallel,
        lambda penalty: Effective(penalty, total),
        lambda m: [2 * m.first.weight + m.second.weight],
    ),
}
PENALTIES = [L2(0.3), L1(0.2), L1(0.2) + L2(0.3), GroupLasso(0.4, groups="output"), Nuclear(0.2)]
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
each_penalty = pytest.mark.parametrize("penalty", PENALTIES, ids=repr)


def batch(width=4):
    draw = torch.Generator().manual_seed(1)
    return torch.randn(16, width, dtype=torch.float64, generator=draw)


def loss_of(model):
    return model(batch()).square().mean()


def gradients(model):
    return {name: param.grad for name, param in model.named_parameters() if param.grad is not None}


def by_autograd(make, weights_of, penalty, times=1.0):
    model = make()
    (loss_of(model) + times * sum(penalty.value(w) for w in weights_of(model))).backward()
    return gradients(model)


@each_penalty
@each_case
def test_value_and_gradients_are_those_of_autograd(case, penalty):
    make, effective, weights_of = case
    expected = by_autograd(make, weights_of, penalty)
    model = make()
    regularizer = Regularizer(model, effective(penalty))
    assert_close(regularizer.value(), sum(penalty.value(w) for w in weights_of(model)))
    (loss_of(model) + regularizer.value()).backward()
    assert_close(gradients(model), expected, 1e-10)

    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Regularizer(model, effective(penalty), mode="grad").attach(optimizer)
    loss_of(model).backward()
    optimizer.step()
    assert_close(gradients(model), expected, 1e-10)


@each_case
def test_terms_scales_multiples_and_schedules(case):
    make, effective, weights_of = case
    penalty = L1(0.2) + L2(0.3)
    model = make()
    regularizer = Regularizer(model, 2 * effective(penalty))
    expected = {
        "L1": sum(0.4 * w.abs().sum() for w in weights_of(model)),
        "L2": sum(0.3 * w.square().sum() for w in weights_of(model)),
    }
    assert_close(regularizer.terms(), expected)
    regularizer.scale = 3.0
    assert_close(regularizer.value(), 3 * (expected["L1"] + expected["L2"]))
    names = [a.name for a in regularizer.entries if a.penalty]
    regularizer.scale = dict(zip(names, range(1, 9), strict=False))
    own = [k * 2 * penalty.value(w) for k, w in enumerate(weights_of(model), 1)]
    assert_close(regularizer.value(), sum(own))

    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = linear(steps=4, start=0.5, end=1.0)
    Regularizer(model, effective(penalty), mode="grad", schedule=schedule).attach(optimizer)
    loss_of(model).backward()
    optimizer.step()
    assert_close(gradients(model), by_autograd(make, weights_of, penalty, 0.5), 1e-10)


def test_the_table_says_which_weights_of_what():
    regularizer = Regularizer(adapted(), Effective(L2(0.1), update, modules=LoRA))
    lines = {a.name: (tuple(a.param.shape), a.status) for a in regularizer.entries}
    assert lines["0.update()"] == ((6, 4), "L2(0.1) (computed by update of A, B)")
    assert lines["2.update()"] == ((3, 6), "L2(0.1) (computed by update of A, B)")
    assert lines["0.A"] == ((2, 4), "- acts through 0.update()")
    assert lines["2.B"] == ((3, 2), "- acts through 2.update()")
    assert lines["0.base.weight"] == ((6, 4), "- no effective weight")
    assert "2 of 10 parameters penalized" in repr(regularizer)
    unnamed = Regularizer(two_layers(), Effective(L2(0.1), lambda model: model[0].weight))
    assert "effective()" in repr(unnamed)
    assert "computed by a function of 0.weight" in repr(unnamed)
    assert repr(Effective(L2(0.1), update, modules=LoRA)) == "Effective(L2(0.1), update, modules=LoRA)"
    assert repr(Effective(L2(0.1), update, modules=["0", LoRA])) == "Effective(L2(0.1), update, modules=('0', LoRA))"
    assert repr(2 * Effective(L2(0.1), lambda model: model)) == "Effective(L2(0.2), function)"


def test_equal_ones_are_equal():
    assert Effective(L2(0.1), update) == Effective(L2(0.1), update)
    assert hash(Effective(L2(0.1), update)) == hash(Effective(L2(0.1), update))
    assert by_pickle(Effective(L2(0.1), update)) == Effective(L2(0.1), update)
    assert Effective(L2(0.1), update) != Effective(L2(0.1), product)
    assert Effective(L2(0.1), update) != Effective(L2(0.1), update, modules=LoRA)


@pytest.mark.parametrize("mode", ["loss", "grad"])
def test_what_is_frozen_stays_and_what_is_thawed_moves(mode):
    model = adapted()
    model[0].A.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regularizer = Regularizer(model, Effective(L2(1.0), update, modules="0"), mode=mode)
    if mode == "grad":
        regularizer.attach(optimizer)

    def step():
        optimizer.zero_grad()
        (loss_of(model) + (regularizer.value() if mode == "loss" else 0)).backward()
        optimizer.step()
        return gradients(model)

    def expected():
        twin = copy.deepcopy(model)
        twin.zero_grad()
        (loss_of(twin) + update(twin[0]).square().sum() / 2).backward()
        return gradients(twin)

    hoped = expected()
    assert "0.A" not in hoped
    assert_close(step(), hoped, 1e-10)
    model[0].A.requires_grad_(True)
    model[0].B.requires_grad_(False)
    model[0].B.grad = None
    hoped = expected()
    assert "0.B" not in hoped
    assert_close(step(), hoped, 1e-10)
    model[0].A.requires_grad_(False)
    assert [a.status for a in regularizer.entries if a.name == "0.update()"] == ["- frozen"]


def test_a_reference_is_the_effective_weight_at_the_start_and_is_saved():
    model = adapted()
    regularizer = Regularizer(model, Effective(L2SP(2.0), update, modules=LoRA))
    assert regularizer.value() == 0
    start = [w.detach().clone() for w in all_updates(model)]
    with torch.no_grad():
        for param in model.parameters():
            param.add_(0.3)
    expected = sum((w - s).square().sum() for w, s in zip(all_updates(model), start, strict=True))
    assert_close(regularizer.value(), expected)
    state = regularizer.state_dict()
    assert list(state["references"]) == ["0.update()", "2.update()"]
    other = Regularizer(model, Effective(L2SP(2.0), update, modules=LoRA))
    assert other.value() == 0
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert_close(other.value(), expected)


@each_case
def test_loss_scaling_and_accumulation(case):
    make, effective, weights_of = case
    model = make().float()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    Regularizer(model, effective(L2(0.5)), mode="grad").attach(optimizer)
    x = batch().float()
    for part in x.split(8):
        scaler.scale(model(part).square().mean() / 2).backward()
    scaler.step(optimizer)
    scaler.update()
    twin = make().float()
    (twin(x).square().mean() + sum(w.square().sum() / 4 for w in weights_of(twin))).backward()
    after = {name: p - 0.1 * p.grad for name, p in twin.named_parameters() if p.grad is not None}
    assert_close({name: p for name, p in model.named_parameters() if name in after}, after, 1e-5)


def test_a_closure_minimizes_the_penalized_loss():
    def train(mode):
        model = two_layers()
        optimizer = torch.optim.LBFGS(model.parameters(), line_search_fn="strong_wolfe", max_iter=8)
        regularizer = Regularizer(model, Effective(L2(0.5), product), mode=mode)
        if mode == "grad":
            regularizer.attach(optimizer)

        def closure():
            optimizer.zero_grad()
            loss = loss_of(model) + (regularizer.value() if mode == "loss" else 0)
            loss.backward()
            return loss

        optimizer.step(closure)
        return dict(model.named_parameters())

    assert_close(train("grad"), train("loss"), 1e-9)


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel], ids=["compile", "data parallel"])
def test_wrapped_models(wrap):
    model = two_layers()
    regularizer = Regularizer(wrap(model), Effective(L2(1.0), product))
    assert_close(regularizer.value(), product(model).square().sum() / 2)
    assert regularizer.entries[0].name == "product()"
    model = adapted()
    regularizer = Regularizer(wrap(model), Effective(L2(1.0), update, modules=LoRA))
    assert_close(regularizer.value(), sum(w.square().sum() / 2 for w in all_updates(model)))
    assert all(a.name.endswith(".update()") for a in regularizer.entries if a.penalty)


def test_a_compiled_loss_is_the_eager_one():
    model = two_layers()
    regularizer = Regularizer(model, Effective(L2(1.0), product))
    compiled = torch.compile(lambda x: model(x).square().mean() + regularizer.value(), backend="aot_eager")
    compiled(batch()).backward()
    expected = by_autograd(two_layers, CASES["product"][2], L2(1.0))
    assert_close(gradients(model), expected, 1e-10)


def test_layers_with_the_attributes_of_peft():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.base_layer = nn.Linear(4, 3).requires_grad_(False)
            self.lora_A = nn.ModuleDict({"default": nn.Linear(4, 2, bias=False)})
            self.lora_B = nn.ModuleDict({"default": nn.Linear(2, 3, bias=False)})
            self.scaling = {"default": 2.0}

        def get_delta_weight(self, adapter):
            return self.lora_B[adapter].weight @ self.lora_A[adapter].weight * self.scaling[adapter]

    model = nn.Sequential(Layer(), nn.Tanh())

    def change(layer):
        return layer.get_delta_weight("default")

    regularizer = Regularizer(model, Effective(L2(1.0), change, modules=Layer))
    row = regularizer.entries[0]
    assert (row.name, row.status) == (
        "0.change()",
        "L2(1.0) (computed by change of lora_A.default.weight, lora_B.default.weight)",
    )
    layer = model[0]
    weight = 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    assert_close(regularizer.value(), weight.square().sum() / 2, 1e-6)


def test_parametrized_layers_inside_the_function():
    model = two_layers()
    parametrizations.weight_norm(model[0])
    regularizer = Regularizer(model, Effective(L2(1.0), product))
    assert_close(regularizer.value(), product(model).square().sum() / 2)
    named = ["0.parametrizations.weight.original0", "0.parametrizations.weight.original1", "2.weight"]
    assert sorted(regularizer.entries[0].computed.originals) == named
    spectral = two_layers()
    parametrizations.spectral_norm(spectral[0])
    spectral.train()
    before = copy.deepcopy(spectral.state_dict())
    Regularizer(spectral, Effective(L2(1.0), product)).value().backward()
    assert_bit_equal(spectral.state_dict(), before)  # no power iteration was made


def test_the_weights_of_functional_call_are_seen():
    model = two_layers()

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model
            self.regularizer = Regularizer(model, Effective(L2(1.0), product))

        def forward(self, x):
            return self.model(x).sum() * 0 + self.regularizer.value()

    doubled = {f"model.{name}": 2 * param for name, param in model.named_parameters()}
    value = torch.func.functional_call(Whole(), doubled, (batch(),))
    assert_close(value, 16 * product(model).square().sum() / 2)


def test_an_l2_may_stand_beside_weight_decay_of_the_parameters():
    model = adapted()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    Regularizer(model, Effective(L2(1.0), update, modules=LoRA), mode="grad").attach(optimizer)
    loss_of(model).backward()
    optimizer.step()
    optimizer.param_groups[0]["weight_decay"] = 0.2
    optimizer.step()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, by_pickle], ids=["copy", "pickle"])
def test_a_copy_acts_on_its_own_model(duplicate):
    model = adapted()
    regularizer = Regularizer(model, Effective(L2(1.0), update, modules=LoRA))
    twin, its = duplicate((model, regularizer))
    with torch.no_grad():
        twin[0].A.zero_()
    assert_close(its.value(), all_updates(model)[1].square().sum() / 2)
    assert its.value() < regularizer.value()


def test_layers_that_come_later_are_penalized_too():
    model = adapted()
    regularizer = Regularizer(model, Effective(L2(1.0), update, modules=LoRA))
    model.append(LoRA(3, 3).double())
    expected = sum(update(layer).square().sum() / 2 for layer in model if isinstance(layer, LoRA))
    assert_close(regularizer.value(), expected)
    model[0].A = nn.Parameter(torch.zeros_like(model[0].A))
    with pytest.raises(ValueError, match=r"must hold the parameters it had, 0.update\(\) were replaced: make the"):
        regularizer.value()


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.complex128])
def test_other_dtypes(dtype):
    model = adapted().to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    regularizer = Regularizer(model, Effective(L2(1.0), update, modules="0"), mode="grad").attach(optimizer)
    expected = torch.autograd.grad(update(model[0]).abs().square().sum() / 2, [model[0].A, model[0].B])
    assert regularizer.value().dtype == (torch.float32 if dtype == torch.bfloat16 else torch.float64)
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    optimizer.step()
    assert_close([model[0].A.grad, model[0].B.grad], list(expected), 1e-1 if dtype == torch.bfloat16 else 1e-10)


def test_autocast_does_not_round_the_weight():
    model = two_layers().float()
    regularizer = Regularizer(model, Effective(L2(1.0), product))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = regularizer.value()
    assert_bit_equal(value, regularizer.value())


def test_a_model_without_values_shows_what_would_be_penalized():
    regularizer = Regularizer(adapted().to("meta"), Effective(L2(1.0), update, modules=LoRA))
    assert [tuple(a.param.shape) for a in regularizer.entries if a.penalty] == [(6, 4), (3, 6)]
    assert "L2(1.0) (computed by update of A, B)" in repr(regularizer)


def test_a_spoilt_weight_stays_visible():
    model = two_layers()
    regularizer = Regularizer(model, Effective(L2(1.0), product))
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    assert regularizer.value().isnan()


# -- what cannot be ---------------------------------------------------------------------------------------------------

OUTSIDE = nn.Parameter(torch.ones(4, 4, dtype=torch.float64))


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda m: m[7].weight, ValueError, "return a tensor for each module, .* it raised IndexError: index 7 is out"),
        (lambda m: m.missing, ValueError, "it raised AttributeError: .* no attribute 'missing': change the"),
        (lambda m: (m[0].weight, m[2].weight), TypeError, "return one tensor, got a tuple for the model .*: make one"),
        (lambda m: None, TypeError, "return one tensor, got a NoneType for the model"),
        (lambda m: torch.arange(3), ValueError, "that can be differentiated, got torch.int64 for the model"),
        (lambda m: product(m).detach(), ValueError, "depends on none for the model .* without detach"),
        (lambda m: m[0].weight.data, ValueError, "depends on none for the model"),
        (torch.no_grad()(product), ValueError, "depends on none for the model"),
        (lambda m: torch.ones(2, 2), ValueError, "depends on none for the model"),
        (lambda m: m[0].weight @ OUTSIDE, ValueError, "only parameters of the .* got others beside 0.weight"),
        (lambda m: OUTSIDE * 1, ValueError, "(depends on none|others beside none)"),
        (lambda m: m[0].weight.to_sparse(), ValueError, "must return a dense tensor, got layout torch.sparse_coo"),
    ],
)
def test_a_function_that_cannot_be_penalized_gets_one_line(function, error, message):
    with pytest.raises(error, match=rf"\A[^\n]*{message}[^\n]*\Z"):
        Regularizer(two_layers(), Effective(L2(1.0), function))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Effective(update, L2(1.0)), TypeError, r"penalty must be a Penalty, got .*: write Effective\(L2"),
        (lambda: Effective(L2(1.0), 3), TypeError, "function must be a function of a module, .* got 3"),
        (lambda: Effective(L2(1.0), LoRA), TypeError, "function must be a function of a module"),
        (lambda: Effective(L2(1.0), nn.Linear(2, 2)), TypeError, "function must be a function of a module"),
        (lambda: Effective(L2(1.0), update, modules=3), TypeError, "modules must be a pattern, type or predicate"),
        (lambda: Effective(MaxNorm(1.0), update), ValueError, "a single tensor that gradients reach, got MaxNorm"),
        (lambda: Effective(L2(1.0) + MaxNorm(1.0), update), ValueError, "gradients reach, got L2.* use a penalty such"),
        (lambda: Effective(Sparsest(0.5), update), ValueError, "gradients reach, got Sparsest"),
        (lambda: Effective(Complexity(1.0), update), ValueError, "gradients reach, got Complexity"),
        (lambda: Effective(Effective(L2(1.0), update), update), ValueError, "gradients reach, got Effective"),
        (lambda: Effective(L2(1.0), update).value(torch.ones(2)), TypeError, "function of modules, not of a tensor"),
        (lambda: Effective(L2(1.0), update).gradient(torch.ones(2)), TypeError, "function of modules, not of a tensor"),
    ],
)
def test_bad_input_gets_one_line(make, error, message):
    with pytest.raises(error, match=rf"\AEffective: [^\n]*{message}[^\n]*\Z"):
        make()


def test_what_a_regularizer_cannot_do_gets_one_line():
    model, penalty = adapted(), Effective(L2(1.0), update, modules=LoRA)
    for mode in ("decoupled", "prox"):
        with pytest.raises(ValueError, match=f"mode '{mode}' changes stored tensors, but the weight of Effective"):
            Regularizer(model, penalty, mode=mode)
    with pytest.raises(ValueError, match=r"selects its parameters itself must not be part of a sum, got Eff"):
        Regularizer(model, penalty + L1(1.0))
    for rules in ({"0.*": penalty}, {"*": L2(1.0), "0.*": penalty}):
        with pytest.raises(ValueError, match=r"a dict must not hold Effective.* got the patterns .*: make one"):
            Regularizer(model, rules)
    with pytest.raises(ValueError, match=r"Effective cannot act on a stack of models.* each of its members\(\)"):
        Regularizer(Stacked([adapted(), adapted()]), penalty)
    with pytest.raises(ValueError, match="Effective: modules must select some, the class Conv2d matches none of"):
        Regularizer(model, Effective(L2(1.0), update, modules=nn.Conv2d))
    with pytest.raises(ValueError, match="has no shape yet: run one batch through the lazy model first"):
        Regularizer(nn.Sequential(nn.LazyLinear(3)), Effective(L2(1.0), lambda model: model[0].weight))
    with pytest.raises(TypeError, match="ProxSGD: penalty must be one with a proximal operator"):
        ProxSGD(model.parameters(), penalty)
    with pytest.raises(ValueError, match=r"groups 'filter' needs a convolution, 0.update\(\) is in LoRA"):
        Regularizer(model, Effective(GroupLasso(1.0, groups="filter"), update, modules=LoRA))
