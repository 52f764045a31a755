"""Optimizers of others and the modes of a regularizer: what is right, what is refused, what is warned of.

Each cell of the table is measured. ``python -m tests.clients.optimizers`` measures all and writes docs/optimizers.md.
"""

import importlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from tests.helpers import make_data, make_model
from torchreg import L1, L2, Regularizer
from torchreg.optim import decoupled

PAGE = Path(__file__).parents[2] / "docs" / "optimizers.md"
MODES = ("loss", "grad", "decoupled", "prox", "decoupled(cls)")
STRENGTH, LR, STEPS = 0.5, 0.01, 20
KEPT = 0.4  # the share of the changes that must be in the weights at the end; averages over 20 steps hold a half

REASONS = {
    "no lr": "needs the optimizer's lr",
    "no lr in the class": "must have an lr to couple the decay to",
    "size": "takes group['lr'] for the size of the steps",
    "copy": "does not keep such a change",
    "two steps": "updates the weights in first_step() and second_step()",
    "derivatives": "acts between the gradients and their derivatives",
    "wraps": "it takes those of another optimizer",
}
WHY = {
    "no lr": "the mode acts by `lr`, which the optimizer has not, or which is no number",
    "no lr in the class": "the same, seen when the class is made",
    "size": "`lr` is not the size of the steps",
    "copy": "the weights are computed from other tensors, so that what the mode writes into them is lost",
    "two steps": "the update is not made by `step()`: attach to the optimizer inside",
    "derivatives": "the optimizer takes second derivatives in its step, of which the mode knows nothing",
    "wraps": "the class takes an optimizer, not parameters: make the class of the optimizer inside",
}
WARNING = "could not be tried"
RIGHT, WARNED = "right", "warned"


class Row(NamedTuple):
    """An optimizer, how it is made and stepped, and what is expected of each mode."""

    module: str
    name: str
    expected: tuple[str, str, str, str, str]
    options: dict[str, Any] = {"weight_decay": 0.0}  # noqa: RUF012
    lr: float | None = LR
    around: type[Optimizer] | None = None  # it is made of such an optimizer, as Lookahead
    closure: bool = False
    graph: bool = False
    matrices: bool = False  # it takes weights, and another part of it takes biases

    @property
    def id(self) -> str:
        return f"{self.module.split('.')[0]}.{self.name}"

    @property
    def cls(self) -> type[Optimizer]:
        kind: type[Optimizer] = getattr(importlib.import_module(self.module), self.name)
        return kind

    def make(self, model: nn.Module, cls: type[Optimizer] | None = None, **options: Any) -> Optimizer:
        params: Any = list(model.parameters())
        lr = {"lr": LR if self.lr is None else self.lr}
        if self.matrices:
            params = [
                {"params": [p for p in params if (p.ndim > 1) is used], "use_muon": used} for used in (True, False)
            ]
        if self.around is not None:
            return (cls or self.cls)(self.around(params, **lr, weight_decay=0.0), **self.options, **options)
        return (cls or self.cls)(params, **({} if self.lr is None else lr), **self.options, **options)


ALL = (RIGHT,) * 5
SECOND = (RIGHT, "refused: derivatives", "refused: derivatives", RIGHT, "refused: derivatives")
NOT_LR = (RIGHT, RIGHT, *("refused: size",) * 3)
COPY = (RIGHT, RIGHT, *("refused: copy",) * 3)
SAM = (RIGHT, *("refused: two steps",) * 4)
SLOW = (RIGHT, RIGHT, RIGHT, "refused: copy", RIGHT)
WRAPS = (RIGHT, RIGHT, RIGHT, "refused: copy", "refused: wraps")
NONE: dict[str, Any] = {}
PO, TIMM = "pytorch_optimizer", "timm.optim"

ROWS = (
    Row(PO, "AdaBelief", ALL),
    Row(PO, "AdEMAMix", ALL),
    Row(PO, "ADOPT", ALL),
    Row(PO, "Adan", ALL),
    Row(PO, "CAME", ALL),
    Row(PO, "Lion", ALL),
    Row(PO, "LaProp", ALL),
    Row(PO, "Lamb", ALL),
    Row(PO, "SOAP", ALL),
    Row(PO, "Shampoo", ALL),
    Row(PO, "StableAdamW", ALL),
    Row(PO, "Muon", ALL, matrices=True),
    Row(PO, "SPlus", SLOW),
    Row(PO, "Ranger", SLOW),
    Row(PO, "AdaFactor", NOT_LR),
    Row(PO, "Prodigy", NOT_LR, lr=1.0),
    Row(PO, "DAdaptAdam", NOT_LR, lr=1.0),
    Row(PO, "MADGRAD", COPY),
    Row(PO, "FTRL", COPY, NONE),
    Row(PO, "ScheduleFreeAdamW", COPY),
    Row(PO, "SAM", SAM, {"base_optimizer": torch.optim.SGD}, closure=True),
    Row(PO, "Lookahead", WRAPS, NONE, around=torch.optim.Adam),
    Row(PO, "ScheduleFreeWrapper", (*COPY[:4], "refused: wraps"), NONE, around=torch.optim.AdamW),
    Row(PO, "OrthoGrad", (*ALL[:4], "refused: wraps"), NONE, around=torch.optim.AdamW),
    Row(PO, "A2Grad", (RIGHT, RIGHT, "refused: no lr", "refused: no lr", "refused: no lr in the class"), NONE, lr=None),
    Row(PO, "AdaHessian", SECOND, graph=True),
    Row(PO, "SophiaH", SECOND, graph=True),
    Row(TIMM, "Adahessian", SECOND, graph=True),
    Row(TIMM, "AdamP", ALL),
    Row(TIMM, "Lars", ALL),
    Row(TIMM, "NAdamW", ALL),
    Row(TIMM, "RMSpropTF", ALL),
    Row(TIMM, "Mars", ALL),
    Row(TIMM, "AdafactorBigVision", ALL),
    Row(TIMM, "MADGRAD", COPY),
    Row(TIMM, "Lookahead", (*WRAPS[:4], "refused: no lr in the class"), NONE, around=torch.optim.AdamW),
    Row("schedulefree", "AdamWScheduleFree", COPY),
    Row("schedulefree", "SGDScheduleFree", COPY),
    Row("schedulefree", "RAdamScheduleFree", COPY),
    Row("schedulefree", "AdamWScheduleFreeClosure", COPY, closure=True),
    Row("prodigyopt", "Prodigy", NOT_LR, lr=1.0),
    Row("dadaptation", "DAdaptAdam", NOT_LR, lr=1.0),
    Row("dadaptation", "DAdaptSGD", NOT_LR, lr=1.0),
    Row("dadaptation", "DAdaptLion", NOT_LR, lr=1.0),
    Row("bitsandbytes.optim", "AdamW", ALL),
    Row("bitsandbytes.optim", "Lion", ALL),
    Row("transformers", "Adafactor", (RIGHT, RIGHT, *("refused: no lr",) * 3), NONE, lr=None),
)


# -- the two ways to train ----------------------------------------------------------------------------------------

Weights = list[Tensor]


def trained(row: Row, mode: str, by_hand: bool) -> Weights:
    """The weights that the model is evaluated with after a training with the penalty, by torchreg or without it."""
    model, (x, y) = _model(), make_data(torch.float32)
    penalized = [p for p in model.parameters() if p.ndim > 1]
    torch.manual_seed(0)
    optimizer = _optimizer(row, model, mode, by_hand)
    regularizer = None if by_hand or mode == "decoupled(cls)" else _regularizer(model, mode)
    if regularizer is not None and mode != "loss":
        regularizer.attach(optimizer)

    def loss() -> Tensor:
        value = F.mse_loss(model(x), y)
        if by_hand and mode in ("loss", "grad"):
            return value + sum(0.5 * STRENGTH * w.square().sum() for w in penalized)
        return value + regularizer.value() if regularizer is not None and mode == "loss" else value

    changed = _decayed(optimizer, mode)
    before = changed if by_hand and mode.startswith("decoupled") else None
    for number in range(STEPS):
        torch.manual_seed(number)
        _step(row, model, optimizer, lambda: loss().backward(create_graph=row.graph), before)
        if by_hand and mode == "prox":
            changed()
    return _evaluated(model, optimizer)


def kept(row: Row, mode: str) -> float:
    """The smallest share, of a weight, of all changes by the mode that is in the evaluated weights in the end.

    The gradients are fixed, so that only these changes distinguish the run from one without penalty.
    """
    (with_it, changes), (without, _) = (_on_fixed_gradients(row, mode, on) for on in (True, False))
    pairs = zip(with_it, without, changes, strict=True)
    return min(float(((a - b) * by).sum() / by.square().sum()) for a, b, by in pairs if by.any())


def _on_fixed_gradients(row: Row, mode: str, on: bool) -> tuple[Weights, Weights]:
    model, draw = _model(), torch.Generator().manual_seed(5)
    changes = [torch.zeros_like(p) for p in model.parameters()]
    torch.manual_seed(0)
    optimizer = _optimizer(row, model, mode if on else "none", by_hand=not on)
    if on and mode != "decoupled(cls)":
        _regularizer(model, mode).attach(optimizer)
    changed = _decayed(optimizer, mode)
    for number in range(STEPS):
        torch.manual_seed(number)
        gradients = [torch.randn(p.shape, generator=draw) + 0.3 for p in model.parameters()]

        def backward(gradients: Weights = gradients) -> None:
            for param, gradient in zip(model.parameters(), gradients, strict=True):
                param.grad = gradient + (param - param.detach()) if row.graph else gradient.clone()

        old = [p.detach().clone() for p in model.parameters()]
        _step(row, model, optimizer, backward, None)
        # what the formula takes away at the weights of this run, which the run without it does not
        new = [p.detach().clone() for p in model.parameters()]
        at = new if mode == "prox" else old
        for param, weight in zip(model.parameters(), at, strict=True):
            param.data.copy_(weight)
        changed()
        for change, param, weight, end in zip(changes, model.parameters(), at, new, strict=True):
            change += param.detach() - weight
            param.data.copy_(end)
    return _evaluated(model, optimizer), changes


def _model() -> nn.Module:
    return make_model(dtype=torch.float32)


def _optimizer(row: Row, model: nn.Module, mode: str, by_hand: bool) -> Optimizer:
    if mode == "decoupled(cls)" and not by_hand:
        optimizer = row.make(model, decoupled(row.cls))
        for group in optimizer.param_groups:
            group["weight_decay"] = STRENGTH
    else:
        optimizer = row.make(model)
    _switch(optimizer, "train")
    return optimizer


def _regularizer(model: nn.Module, mode: str) -> Regularizer:
    return Regularizer(model, L1(STRENGTH) if mode == "prox" else L2(STRENGTH), mode=mode)


def _decayed(optimizer: Optimizer, mode: str) -> Callable[[], None]:
    """The mode's change of the weights, written out; a class with decoupled decay changes biases, too."""

    @torch.no_grad()
    def change() -> None:
        for w, lr in ((p, group.get("lr", 0.0)) for group in optimizer.param_groups for p in group["params"]):
            if w.ndim > 1 or mode == "decoupled(cls)":
                if mode == "prox":
                    w.copy_(w.sign() * (w.abs() - lr * STRENGTH).clamp(min=0))
                else:
                    w.mul_(1 - lr * STRENGTH)

    return change


def _step(
    row: Row, model: nn.Module, optimizer: Optimizer, backward: Callable[[], None], before: Callable[[], None] | None
) -> None:
    """One step, with ``before`` between the first gradients and the update."""
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        model.zero_grad()
        with torch.enable_grad():
            backward()
        if calls == 0 and before is not None:
            before()
        calls += 1
        return torch.zeros(())

    if row.closure:
        optimizer.step(closure)  # type: ignore[arg-type]
    else:
        closure()
        optimizer.step()


def _evaluated(model: nn.Module, optimizer: Optimizer) -> Weights:
    _switch(optimizer, "eval")
    return [p.detach().clone() for p in model.parameters()]


def _switch(optimizer: Optimizer, name: str) -> None:
    if callable(method := getattr(optimizer, name, None)):
        method()


# -- what comes out -----------------------------------------------------------------------------------------------


def outcome(row: Row, mode: str) -> str:
    """What a user gets: "right", "warned", "refused: why", or in words what is wrong."""
    with _told() as messages:
        try:
            found = trained(row, mode, by_hand=False)
        except (ValueError, TypeError) as error:
            return f"refused: {_reason(str(error))}"
    if any(WARNING in message for message in messages):
        return WARNED
    expected, without = trained(row, mode, by_hand=True), trained(row, "none", by_hand=True)
    if not _close(found, expected):
        return "another trajectory than the one written out"
    if _close(found, without):
        return "no effect"
    if mode not in ("loss", "grad") and (share := kept(row, mode)) < KEPT:
        return f"only {share:.2f} of the changes are in the weights at the end"
    return RIGHT


def _reason(message: str) -> str:
    """The name of the reason, if the message is one line that gives advice."""
    is_advice = any(words in message for words in (": use ", ": attach to ", " or use "))
    named = [name for name, words in REASONS.items() if words in message]
    return named[0] if named and is_advice and "\n" not in message else message


def _close(a: Weights, b: Weights) -> bool:
    return all(torch.allclose(x, y, rtol=1e-4, atol=1e-6) for x, y in zip(a, b, strict=True))


@contextmanager
def _told() -> Iterator[list[str]]:
    messages: list[str] = []
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        yield messages
    messages += [str(each.message) for each in told]


# -- the page -----------------------------------------------------------------------------------------------------


def page(found: dict[tuple[str, str], str]) -> str:
    words = [*found.values()]
    right, refused, warned = (sum(word.startswith(kind) for word in words) for kind in (RIGHT, "refused", WARNED))
    lines = [
        "# Optimizers of other libraries",
        "",
        f"{len(ROWS)} optimizers in {len(MODES)} modes: {right} are right, {refused} refused, {warned} warned of, "
        f"{len(words) - right - refused - warned} wrong.",
        "Made by `python -m tests.clients.optimizers`. What the words mean, and what to do instead, is in",
        "[what torchreg can and cannot see](guides/limits.md).",
        "",
        "| optimizer | " + " | ".join(f"`{mode}`" for mode in MODES) + " |",
        "|---" * (len(MODES) + 1) + "|",
    ]
    lines += [f"| `{row.id}` | " + " | ".join(found[row.id, mode] for mode in MODES) + " |" for row in ROWS]
    lines += ["", "Right: 20 steps give the weights of 20 steps with the penalty written out, and the changes that the"]
    lines += ["penalty makes are in the weights that the model is evaluated with. Refused: `attach`, or the class,"]
    lines += ["raises an error of one line with advice."]
    lines += ["", *(f"- **{name}**: {what}." for name, what in WHY.items())]
    return "\n".join(lines) + "\n"


def main() -> None:
    found = {}
    for row in ROWS:
        for mode in MODES:
            found[row.id, mode] = outcome(row, mode)
        print(row.id, *(found[row.id, mode] for mode in MODES), sep=" | ", flush=True)
    PAGE.write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
