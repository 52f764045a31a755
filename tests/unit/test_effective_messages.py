"""What a user reads of an effective penalty: its rows in the table, its repr, and one line of error."""

import pytest
import torch
from torch import nn

from tests.helpers import by_pickle
from tests.unit.adapting import LoRA, adapted, product, two_layers, update
from torchreg import L1, L2, Effective, GroupLasso, MaxNorm, Regularizer, Sparsest, Stacked
from torchreg.optim import ProxSGD
from torchreg.penalties import Complexity


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


def test_a_model_without_values_shows_what_would_be_penalized():
    regularizer = Regularizer(adapted().to("meta"), Effective(L2(1.0), update, modules=LoRA))
    assert [tuple(a.param.shape) for a in regularizer.entries if a.penalty] == [(6, 4), (3, 6)]
    assert "L2(1.0) (computed by update of A, B)" in repr(regularizer)


def test_equal_ones_are_equal():
    assert Effective(L2(0.1), update) == Effective(L2(0.1), update)
    assert hash(Effective(L2(0.1), update)) == hash(Effective(L2(0.1), update))
    assert by_pickle(Effective(L2(0.1), update)) == Effective(L2(0.1), update)
    assert Effective(L2(0.1), update) != Effective(L2(0.1), product)
    assert Effective(L2(0.1), update) != Effective(L2(0.1), update, modules=LoRA)


# -- what cannot be -----------------------------------------------------------------------------------------------


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
        (lambda: Effective(update, L2(1.0)), TypeError, r"penalty must be a Penalty, as in Effective\(L2"),
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
