"""Parameter groups for any optimizer: which parameters decay and how much, with which learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from numbers import Real
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torchreg.ensemble.stacked import Stacked
from torchreg.hooks import Group
from torchreg.optim.options import Rules, Select
from torchreg.penalties.members import member_of
from torchreg.selection.folding import Line, printed
from torchreg.selection.layers import hidden_matrices, layer_numbers
from torchreg.selection.modules import check_model, listed
from torchreg.selection.parameters import ParamInfo, each_parameter, stored
from torchreg.selection.selectors import Selector, as_selector, check_patterns, weights

Number = float | Tensor


def param_groups(
    model: nn.Module,
    *,
    weight_decay: Rules,
    select: Select = weights,
    lr: Rules | None = None,
    layer_decay: float | None = None,
    kind: Literal["muon"] | None = None,
    **options: Any,
) -> ParamGroups:
    r"""Parameter groups for any optimizer, in which only selected parameters have a weight decay.

    .. math:: \lambda_i = \begin{cases} \lambda & \text{if parameter } i \text{ is selected} \\
              0 & \text{otherwise} \end{cases}, \qquad
              \eta_i = \eta \, d^{\,n - 1 - l_i}

    The default selection is that of a :class:`~torchreg.Regularizer`: no biases, no parameters of normalization layers,
    no position embeddings, nothing that the model itself exempts; see :data:`~torchreg.weights`. Each parameter is in
    one group, once, also if it is tied or frozen. The order depends on the model and the arguments alone, so that
    checkpoints fit. What a parametrization such as ``weight_norm`` stores instead of a weight does not decay, because
    that would not shrink the weight.

    An optimizer that gets bare parameters, as in ``AdamW(model.parameters())``, lets all of them decay, biases too; the
    optimizers of :mod:`torchreg.optim` are no exception. Given the model, as in ``AdamW(model)``, they make these
    groups.

    Args:
        model: any module, wrapped or not.
        weight_decay: :math:`\lambda`, the weight decay of the selected parameters: a number, or a dict of name patterns
            to numbers, of which the first that matches holds. What none matches does not decay.
        select: which parameters decay: a selector, or a function of :class:`~torchreg.ParamInfo`.
        lr: :math:`\eta`, the learning rate: a number, or a dict of name patterns to numbers. What none matches has the
            optimizer's own.
        layer_decay: :math:`d`, the ratio of the learning rates of a layer and the next one, in (0, 1]. Of :math:`n`
            layers, the one at the output has :math:`\eta`, and that at the input the smallest learning rate. The
            layers :math:`l_i` are those that a timm model states itself (``group_matcher``), else the modules in
            ``nn.Sequential`` and ``nn.ModuleList``, and what comes before and after these.
        kind: ``"muon"`` puts hidden matrices in groups of their own, with ``use_muon`` as True, and all others in
            groups for AdamW, with ``use_muon`` as False. Hidden matrices are the weights with two dimensions of all
            layers but embeddings and the output layer.
        **options: further options of all groups, such as ``betas``.

    Returns:
        A list of groups that prints as a table: what decays comes before what does not, and layers follow from input
        to output. No group is empty.

    Raises:
        TypeError: ``model`` is no module, ``select`` no selector, or a number is none.
        ValueError: a decay or learning rate is negative or not finite; a pattern matches no parameter; nothing is
            selected; a parameter has no shape yet; ``layer_decay`` is outside (0, 1], has no ``lr`` to multiply, or the
            model has one layer only; ``kind="muon"`` and there is no hidden matrix.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
        >>> groups = param_groups(model, weight_decay=0.01, lr=1e-3)
        >>> optimizer = torch.optim.AdamW(groups)
        >>> groups
        2 of 6 parameters decay, 18 of 29 values
          parameter  shape  values  group
          0.weight   3 x 4      12  0: weight_decay=0.01, lr=0.001
          0.bias     3           3  1: lr=0.001 - bias
          1.weight   3           3  1: lr=0.001 - normalization
          1.bias     3           3  1: lr=0.001 - bias
          2.weight   2 x 3       6  0: weight_decay=0.01, lr=0.001
          2.bias     2           2  1: lr=0.001 - bias

    References:
        Kevin Clark, Minh-Thang Luong, Quoc V. Le, Christopher D. Manning, "ELECTRA: Pre-training Text Encoders as
        Discriminators Rather Than Generators", ICLR 2020 (layer-wise learning rates).
        Keller Jordan, Yuchen Jin, Vlado Boza, Jiacheng You, Franz Cesista, Laker Newhouse, Jeremy Bernstein, "Muon: An
        Optimizer for Hidden Layers in Neural Networks", 2024.
    """
    check_model("param_groups", model)
    if "params" in options:
        raise TypeError("param_groups: params are those of the model, got them as an option: leave params out")
    if kind not in (None, "muon"):
        raise ValueError(f"param_groups: kind must be 'muon' or None, got {kind!r}")
    names = [name for places in each_parameter(model) for place in places for name in (place.name, *_stored(place))]
    decays, rates = _rules("weight_decay", weight_decay, names), _rules("lr", {} if lr is None else lr, names)
    members = list(_members(model, as_selector(select), decays, rates))
    if not any(member.exemption is None for member in members) and weight_decay != 0:
        raise ValueError(
            f"param_groups: select must choose at least one parameter, got none of {len(members)} of "
            f"{type(model).__name__}" + (": select=torchreg.everything lifts exemptions" if members else "")
        )
    check_patterns("param_groups", as_selector(select), names, " of select")
    factors = {} if layer_decay is None else _factors(model, layer_decay, members, len(rates))
    matrices = _matrices(model, members) if kind else set()

    def key(member: _Member) -> tuple[Any, ...]:
        """Sorts groups, and is equal for the members of one group."""
        is_exempt = member.exemption is not None
        return member.name not in matrices, factors.get(member.name, 1.0), is_exempt, member.decay, member.rate

    groups: list[Group] = []
    for first in sorted({key(member): member for member in members}.values(), key=key):
        group = {**options, "params": [member.param for member in members if key(member) == key(first)]}
        group["weight_decay"] = 0.0 if first.exemption is not None else list(decays.values())[first.decay]
        if first.rate < len(rates):
            group["lr"] = list(rates.values())[first.rate] * factors.get(first.name, 1.0)
        if kind:
            group["use_muon"] = first.name in matrices
        groups.append(group)
    return ParamGroups(groups, members)


class ParamGroups(list[Group]):
    """Parameter groups, as optimizers take them. They print as a table of the parameters with their groups."""

    def __init__(self, groups: Iterable[Group], members: Sequence[_Member]) -> None:
        super().__init__(groups)
        self._members = members

    def __repr__(self) -> str:
        groups = {param: (number, group) for number, group in enumerate(self) for param in group["params"]}
        lines, decaying = [], []
        for member in self._members:
            number, group = groups.get(member.param, (None, {}))
            decay = group.get("weight_decay", 0)
            status = "in no group" if number is None else f"{number}: {_described(group, member.exemption)}"
            line = Line.of(member.name, member.param, status)
            lines.append(line)
            decaying += [line.values] if isinstance(decay, Tensor) or decay else []
        count = sum(line.values for line in lines)
        first = f"{len(decaying)} of {len(lines)} parameters decay, {sum(decaying):,} of {count:,} values"
        return "\n".join([first, *printed(lines, "group")])

    @property
    def places(self) -> dict[Tensor, ParamInfo]:
        return {member.param: member.place for member in self._members}

    @property
    def is_exempt(self) -> list[bool]:
        """Of each group, whether its parameters are not selected."""
        exempt = {member.param for member in self._members if member.exemption is not None}
        return [group["params"][0] in exempt for group in self]


def _described(group: Group, exemption: str | None) -> str:
    """The options that may differ between the groups of a model, and why a parameter does not decay."""
    shown = [
        f"{name}={_short(group[name])}"
        for name in ("use_muon", "weight_decay", "lr")
        if name in group and not (name == "weight_decay" and exemption)
    ]
    return ", ".join(shown) + ("" if exemption is None else f" - {exemption}").removeprefix("" if shown else " ")


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else repr(value)


@dataclass(frozen=True, eq=False)
class _Member:
    """A parameter as an optimizer holds it, why it does not decay, and the positions of the rules that it has."""

    name: str
    param: nn.Parameter
    place: ParamInfo
    exemption: str | None
    decay: int
    rate: int


def _members(
    model: nn.Module, selector: Selector, decays: Mapping[str, Number], rates: Mapping[str, Number]
) -> Iterator[_Member]:
    found: dict[nn.Parameter, _Member] = {}
    for places in each_parameter(model):
        names = [name for place in places for name in (place.name, *_stored(place))]
        decay, rate = _position(decays, names), _position(rates, names)
        exemption = _exemption(places, selector, isinstance(model, Stacked))
        if exemption is None and decay == len(decays):
            exemption = "no pattern matches"
        for name, param in _stored(places[0]).items():
            if param not in found:
                found[param] = _Member(name, param, places[0], exemption, 0 if exemption else decay, rate)
    yield from found.values()


def _stored(place: ParamInfo) -> dict[str, nn.Parameter]:
    return dict(stored(place))


def _exemption(places: Sequence[ParamInfo], selector: Selector, is_stacked: bool) -> str | None:
    name, computed = places[0].name, places[0]._computed
    if computed is None and is_lazy(places[0].param):
        raise ValueError(f"param_groups: {name} has no shape yet: run one batch through the lazy model first")
    if not (places[0].param.is_floating_point() or places[0].param.is_complex()):
        return f"{str(places[0].param.dtype).removeprefix('torch.')} values"
    reasons = [selector.reason(member_of(place, 0) if is_stacked else place) for place in places]
    if None not in reasons:
        return reasons[0]
    return f"stored by {computed.how}" if computed is not None and computed.kept() is None else None


def _rules(argument: str, given: Rules, names: Sequence[str]) -> Mapping[str, Number]:
    """A dict of name patterns to numbers; a single number gets the pattern ``"*"``."""
    rules = given if isinstance(given, Mapping) else {"*": given}
    for pattern, value in rules.items():
        what = argument if rules is not given else f"{argument}[{pattern!r}]"
        is_number = value.numel() == 1 if isinstance(value, Tensor) else isinstance(value, Real)
        if not is_number or isinstance(value, bool):
            raise TypeError(f"param_groups: {what} must be a number, got {value!r}")
        if not 0 <= value < math.inf:
            raise ValueError(f"param_groups: {what} must be finite and >= 0, got {value!r}")
    if rules is given:
        check_patterns("param_groups", map(str, rules), names, f" of {argument}")
    return rules


def _position(rules: Mapping[str, Number], names: Sequence[str]) -> int:
    """Which rule is the first to match one of the names; their number if none does."""
    matches = (i for i, pattern in enumerate(rules) if any(fnmatchcase(name, pattern) for name in names))
    return next(matches, len(rules))


def _factors(model: nn.Module, layer_decay: float, members: Sequence[_Member], rates: int) -> dict[str, float]:
    """What multiplies the learning rate of each parameter, by its name."""
    if isinstance(layer_decay, bool) or not isinstance(layer_decay, Real) or not 0 < layer_decay <= 1:
        raise ValueError(f"param_groups: layer_decay must be in (0, 1], got {layer_decay!r}")
    without = [member.name for member in members if member.rate == rates]
    if without:
        raise ValueError(
            f"param_groups: layer_decay multiplies the learning rate, got no lr for {listed(without)}: pass lr"
        )
    numbers = layer_numbers(model)
    last = max(numbers.values())
    if not last:
        raise ValueError(
            f"param_groups: layer_decay needs two or more layers, {type(model).__name__} has one: leave layer_decay out"
        )
    return {name: layer_decay ** (last - number) for name, number in numbers.items()}


def _matrices(model: nn.Module, members: Sequence[_Member]) -> set[str]:
    """The names of what is stored of hidden matrices."""
    reasons = hidden_matrices(model)
    found = {m.name for m in members if reasons[m.place.name] is None and m.param.ndim == 2}
    if not found:
        why = listed([f"{name} ({reason})" for name, reason in reasons.items()])
        raise ValueError(f"param_groups: kind 'muon' needs a hidden matrix, got none of {why}: leave kind out")
    return found
