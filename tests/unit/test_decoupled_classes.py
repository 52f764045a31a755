"""The classes that ``decoupled()`` makes, and the signatures of those that have a name."""

import abc
import ast
import copy
import inspect
import pickle
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.cases import each_duplicate
from tests.helpers import assert_bit_equal, assert_close, make_model, train
from tests.optimizers import COUPLINGS, FORMS, each_form
from tests.unit.training import a_weight, one_step
from torchreg import cosine, optim, weights
from torchreg.optim import SGDW, AdamaxW, AdamW, DecoupledDecay, decoupled, named
from torchreg.optim import options as declared

TORCHS = [getattr(torch.optim, name) for name in torch.optim.__all__ if name != "Optimizer"]
each_torchs = pytest.mark.parametrize(
    "base", [cls for cls in TORCHS if inspect.isclass(cls)], ids=lambda cls: cls.__name__
)


# -- torch's classes that do not take just any parameters, gradients or calls -----------------------------------------


def each_weights(dtype):
    return [nn.Parameter(torch.linspace(-1, 1, 6, dtype=dtype).reshape(2, 3)) for _ in FORMS]


def set_gradients(weights, step):
    for w in weights:
        w.grad = (w.detach() - torch.sin(torch.tensor(float(step)))).tanh()


def set_sparse_gradients(weights, step):
    with torch.sparse.check_sparse_tensor_invariants():
        for w in weights:
            w.grad = (w.detach() * torch.tensor([[step % 2], [1]], dtype=w.dtype)).to_sparse(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("base", "gradients"), [(torch.optim.Muon, set_gradients), (torch.optim.SparseAdam, set_sparse_gradients)]
)
def test_without_decay_it_is_its_base_to_the_bit_in_every_coupling_and_form(base, gradients, dtype):
    results = []
    for kind in (decoupled(base), base):
        weights, groups = each_weights(dtype), []
        for i, (w, form) in enumerate(zip(weights, FORMS.values(), strict=True)):
            group = {"params": [w], "weight_decay": 0} if "weight_decay" in kind([w]).defaults else {"params": [w]}
            groups.append({**group, **form, "coupling": COUPLINGS[i % 4]} if kind is not base else group)
        optimizer = kind(groups, lr=0.01)
        for step in range(30):
            gradients(weights, step)
            with torch.sparse.check_sparse_tensor_invariants():
                optimizer.step()
        results.append(weights)
    assert_bit_equal(*results)


@each_form
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
def test_without_decay_lbfgs_is_torchs_to_the_bit(dtype, line_search, form):
    results = []
    for kind, options in ((decoupled(torch.optim.LBFGS), form), (torch.optim.LBFGS, {})):
        model = make_model(dtype=dtype)
        optimizer = kind(model.parameters(), lr=0.1, max_iter=4, line_search_fn=line_search, **options)
        results.append(train(model, optimizer, steps=10, closure=True))
    assert_bit_equal(*results)


@each_form
def test_lbfgs_decays_once_in_a_step_however_often_it_evaluates(form):
    w = a_weight(2.0)
    optimizer = decoupled(torch.optim.LBFGS)([w], lr=0.5, weight_decay=0.5, max_iter=5, **form)
    w.data.add_(1)
    evaluations = []

    def closure():
        w.grad = torch.full_like(w, 1e-4 if len(evaluations) < 3 else 0.0)
        evaluations.append(w.item())
        return w.sum()

    optimizer.step(closure)
    assert len(evaluations) > 1
    decays = 0.25 * ({"L2": 3.0, "L1": 1.0}[form.get("decay", "L2")])
    if "towards" in form:
        decays = 0.25
    assert_close(w.item(), 3.0 - decays, tolerance=1e-3)


def test_sparse_adam_decays_rows_without_a_gradient_too():
    w = nn.Parameter(torch.ones(3, 2))
    optimizer = decoupled(torch.optim.SparseAdam)([w], lr=0.1, weight_decay=0.5)
    with torch.sparse.check_sparse_tensor_invariants():
        w.grad = torch.zeros(3, 2).to_sparse(1)
        optimizer.step()
    assert_close(w.detach(), torch.full((3, 2), 0.95), tolerance=1e-6)


@pytest.mark.parametrize("base", [torch.optim.Muon, torch.optim.Adafactor], ids=lambda cls: cls.__name__)
def test_with_decay_classes_of_this_rule_are_torchs_to_the_bit(base):
    results = []
    for kind in (decoupled(base), base):
        weights = each_weights(torch.float32)
        optimizer = kind(weights, lr=0.1, weight_decay=0.5)
        for step in range(20):
            set_gradients(weights, step)
            optimizer.step()
        results.append(weights)
    assert_bit_equal(*results)


# -- classes like any other -------------------------------------------------------------------------------------------


@each_torchs
def test_each_class_of_torchs_is_made_once_and_documented(base):
    made = decoupled(base)
    assert decoupled(base) is made
    assert decoupled(made) is made
    assert issubclass(made, DecoupledDecay)
    assert issubclass(made, base)
    assert made.__name__ == (base.__name__ if base.__name__.endswith("W") else f"{base.__name__}W")
    assert base.__name__ in inspect.getdoc(made)
    assert "coupling" in inspect.getdoc(made)


@each_torchs
def test_its_signature_is_the_bases_with_the_options_of_the_decay(base):
    ours, theirs = inspect.signature(decoupled(base)).parameters, inspect.signature(base).parameters
    added = {"coupling": "lr", "timescale": None, "decay": "L2", "towards": "zero", "cautious": False}
    added |= {"decay_schedule": None, "select": weights, "layer_decay": None}
    if "weight_decay" not in theirs:
        added["weight_decay"] = 0.0
    assert ours.keys() == (theirs.keys() | added.keys()) - {"decoupled_weight_decay"}
    for name, default in added.items():
        assert ours[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert ours[name].default == default
    for name in theirs.keys() & ours.keys():
        assert (ours[name].kind, ours[name].default) == (theirs[name].kind, theirs[name].default)


@each_torchs
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_a_class_is_copied_as_itself(base, duplicate):
    assert duplicate(decoupled(base)) is decoupled(base)


def test_classes_and_their_optimizers_are_unpickled_in_a_new_process():
    made = [decoupled(base) for base in TORCHS if inspect.isclass(base)]
    optimizers = [
        kind([a_weight()], lr=0.1, weight_decay=0.1, towards="start", decay_schedule=cosine(steps=9))
        for kind in (SGDW, AdamW, decoupled(torch.optim.Adadelta))
    ]
    for optimizer in optimizers:
        optimizer.param_groups[0]["params"][0].data.add_(1)
        one_step(optimizer)
    code = (
        "import pickle, sys, torch\n"
        "made, optimizers = pickle.load(sys.stdin.buffer)\n"
        "for optimizer in optimizers:\n"
        "    w = optimizer.param_groups[0]['params'][0]\n"
        "    w.grad = torch.zeros_like(w)\n"
        "    optimizer.step()\n"
        "    print(repr(w.item()))\n"
        "from torchreg.optim import decoupled\n"
        "print(*(cls.__name__ for cls in made if decoupled(cls.__mro__[3]) is cls))\n"
        "print(type(optimizers[-1]) is decoupled(torch.optim.Adadelta))\n"
    )
    given = pickle.dumps((made, optimizers))
    run = [sys.executable, "-c", code]
    text = subprocess.run(run, input=given, capture_output=True, check=True, timeout=120).stdout.decode()
    for optimizer in optimizers:
        one_step(optimizer)
    weights = [repr(optimizer.param_groups[0]["params"][0].item()) for optimizer in optimizers]
    assert text.split() == [*weights, *(cls.__name__ for cls in made), "True"]


class Halving(decoupled(torch.optim.Adadelta)):
    """At the top of a module, where pickle finds it."""

    def __init__(self, params, *, halvings: int = 1, **kwargs):
        super().__init__(params, **kwargs)
        self.halvings = halvings

    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            torch._foreach_mul_(group["params"], 0.5**self.halvings)
        return loss


def test_a_made_class_can_be_subclassed():
    optimizer = Halving([w := a_weight()], weight_decay=0.5, coupling="constant", halvings=2)
    with torch.no_grad():
        one_step(optimizer)
    assert_close(w.item(), 0.125)
    assert pickle.loads(pickle.dumps(Halving)) is Halving
    assert {"halvings", "rho", "coupling"} <= inspect.signature(Halving).parameters.keys()
    assert decoupled(Halving) is Halving


def test_a_made_class_can_be_mixed_with_an_abstract_one():
    class Abstract(decoupled(torch.optim.Rprop), abc.ABC):
        pass

    one_step(Abstract([w := a_weight()], lr=0.1, weight_decay=0.5))
    assert_close(w.item(), 0.95)


class OfAnotherKind(torch.optim.SGD, metaclass=abc.ABCMeta):
    """An optimizer class that is not a plain ``type``."""


def test_a_class_of_another_metaclass_is_made_too():
    made = decoupled(OfAnotherKind)
    assert isinstance(made, abc.ABCMeta)
    assert pickle.loads(pickle.dumps(made)) is made
    one_step(made([w := a_weight()], lr=0.1, weight_decay=0.5))
    assert_close(w.item(), 0.95)


class WithoutRate(torch.optim.Optimizer):
    """An optimizer that has no lr."""

    def __init__(self, params, rho=0.1):
        super().__init__(params, {"rho": rho})


@pytest.mark.parametrize(
    "nonsense", [nn.Linear, torch.optim.Optimizer, DecoupledDecay, "SGD", None, [], {}, SGDW([a_weight()])], ids=str
)
def test_what_is_no_optimizer_class_is_refused(nonsense):
    with pytest.raises(TypeError, match=r"\Adecoupled: cls must be a class of optimizers[^\n]*\Z"):
        decoupled(nonsense)


def test_an_optimizer_is_told_to_be_made_of_the_class():
    with pytest.raises(TypeError, match=r"got an instance of Adagrad: write decoupled\(Adagrad\)\(params, ...\)\Z"):
        decoupled(torch.optim.Adagrad([a_weight()]))


def test_a_class_without_a_learning_rate_is_refused():
    with pytest.raises(
        ValueError, match=r"\Adecoupled: cls must have an lr to .* got WithoutRate without one: use a Regularizer\Z"
    ):
        decoupled(WithoutRate)

    class Hidden(WithoutRate):
        def __init__(self, params, **kwargs):
            super().__init__(params, **kwargs)

    with pytest.raises(ValueError, match=r"\AHiddenW: the base class must have an lr to .*: use a Regularizer\Z"):
        decoupled(Hidden)([a_weight()])


class HandsAllOn(torch.optim.AdamW):
    def __init__(self, params, *args, **rest):
        super().__init__(params, *args, **rest)


class HandsMostOn(torch.optim.AdamW):
    def __init__(self, params, lr=1e-3, **rest):
        super().__init__(params, lr=lr, **rest)


@pytest.mark.parametrize("base", [HandsAllOn, HandsMostOn])
@pytest.mark.parametrize("as_model", [False, True], ids=["parameters", "model"])
def test_a_class_that_hands_its_keywords_on_has_the_options_of_the_class_above(base, as_model):
    model = nn.Linear(3, 2)
    given = model if as_model else list(model.parameters())
    assert decoupled(base)(given).param_groups[0]["weight_decay"] == 0.01  # AdamW's own
    made = decoupled(base)(given, weight_decay=0.5, coupling="independent", betas=(0.8, 0.9))
    assert [made.param_groups[0][key] for key in ("weight_decay", "lr", "betas")] == [0.5, 1e-3, (0.8, 0.9)]
    model.weight.grad = torch.zeros(2, 3)
    before = model.weight.detach().clone()
    made.step()
    assert_close(model.weight, before / 2)
    assert inspect.signature(decoupled(base)).parameters["weight_decay"].default == 0.01


def test_a_decay_that_is_not_handed_on_is_refused():
    class Forgets(torch.optim.Adam):
        def __init__(self, params, lr=1e-3, **rest):
            super().__init__(params, lr=lr)

    assert decoupled(Forgets)(nn.Linear(3, 2)).param_groups[0]["weight_decay"] == 0
    with pytest.raises(ValueError, match=r"ForgetsW: weight_decay must be handed on by Forgets, got 0\.5, of"):
        decoupled(Forgets)(nn.Linear(3, 2), weight_decay=0.5)


@each_duplicate
def test_the_default_decay_of_a_copy_is_for_its_coupling_too(duplicate):
    optimizer = duplicate(AdamW(nn.Linear(3, 2).parameters()))
    with pytest.raises(ValueError, match="weight_decay must be given with coupling 'independent'"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "coupling": "independent"})


def test_the_mixin_alone_is_refused():
    with pytest.raises(TypeError, match=r"\ADecoupledDecay: it must be mixed into an optimizer class, .*\Z"):
        DecoupledDecay([a_weight()])


# -- the classes that have a name -------------------------------------------------------------------------------------

READY = {name: cls for name, cls in vars(named).items() if getattr(cls, "__module__", None) == named.__name__}


def test_all_ready_classes_are_public_and_documented():
    assert len(READY) == 7
    for name, cls in READY.items():
        assert getattr(optim, name) is cls
        assert name in optim.__all__
        assert all(part in cls.__doc__ for part in (".. math::", "Args:", "Example:", "weight_decay", "coupling"))


@pytest.mark.parametrize("name", READY)
def test_the_signature_of_a_ready_class_is_what_type_checkers_read(name):
    tree = ast.parse(Path(named.__file__).read_text())
    (cls,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    (init,) = (node for node in ast.walk(cls) if isinstance(node, ast.FunctionDef))
    written = [arg.arg for arg in init.args.args[1:]]
    by_keyword = typing.get_type_hints(getattr(declared, init.args.kwarg.annotation.slice.attr))
    actual = inspect.signature(READY[name]).parameters
    assert {*written, *by_keyword} == actual.keys()
    assert written == ["params", "lr"] == list(actual)[:2]
    assert ast.literal_eval(init.args.defaults[0]) == actual["lr"].default
    decay = list(declared.DecayOptions.__annotations__)
    assert list(actual)[-len(decay) :] == decay
    assert all(actual[key].kind is inspect.Parameter.KEYWORD_ONLY for key in decay)
    assert all(key in READY[name].__doc__ for key in actual)


@pytest.mark.parametrize(
    ("base", "ours"), [(torch.optim.SGD, SGDW), (torch.optim.Adam, AdamW), (torch.optim.Adamax, AdamaxW)]
)
def test_a_ready_class_and_a_made_one_do_the_same(base, ours):
    results = []
    for kind in (decoupled(base), ours):
        model = make_model()
        results.append(train(model, kind(model.parameters(), lr=0.01, weight_decay=0.1), steps=3))
    assert_bit_equal(*results)
