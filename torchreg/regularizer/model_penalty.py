"""What is penalized in a model, how strongly at which step, and the value of the penalty."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from torchreg.hooks import checked_steps
from torchreg.penalties import Penalty
from torchreg.penalties.constraints import Constraint
from torchreg.regularizer.assignment import Assignment, as_rules
from torchreg.regularizer.penalized import Penalized, Trained
from torchreg.regularizer.penalized_loss import PenalizedLoss
from torchreg.regularizer.scales import Scale, Scales
from torchreg.regularizer.summary import warn_of_no_use
from torchreg.regularizer.taken import taken
from torchreg.regularizer.totals import total
from torchreg.regularizer.value import warn_of_constants
from torchreg.schedules import Schedule
from torchreg.selection.selectors import Selector

Mode = Literal["loss", "grad", "decoupled", "prox"]


class _Fixed:
    """An attribute that there is not: to set it would change nothing, and so is refused."""

    def __init__(self, advice: str) -> None:
        self._advice = advice

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type) -> Any:
        raise AttributeError(f"{owner.__name__} has no {self._name}: {self._advice}")

    def __set__(self, instance: object, value: object) -> None:
        raise AttributeError(f"{type(instance).__name__}: {self._name} cannot be set: {self._advice}")


class ModelPenalty:
    """The penalty of a model's parameters, as a number, with a scale that may follow a schedule.

    :class:`Regularizer` adds what a penalty does in the steps of an optimizer, and checks the arguments. All that a
    checkpoint holds is here.

    Args:
        model: any module without lazy parameters.
        penalty: a penalty, or a dict of name patterns to penalties.
        mode: the regularizer's.
        select: which parameters.
        schedule: a function from the number of steps made to the scale.
        compile: whether to use compiled kernels.
    """

    def __init__(
        self,
        model: nn.Module,
        penalty: Penalty | Mapping[str, Penalty],
        mode: Mode,
        select: Selector,
        schedule: Schedule | None,
        compile: bool,
    ) -> None:
        self._model = model
        self._mode = mode
        self.schedule = schedule
        self.compile = compile
        self._scales = Scales(1.0)
        self._penalized = Penalized(model, as_rules(penalty, mode), select, mode)
        if schedule is not None and any(
            isinstance(term, Constraint) for a in self._penalized.entries for term in a.terms
        ):
            raise ValueError(
                "Regularizer: a constraint has no strength that a schedule could change: make one Regularizer for the "
                "constraint, without a schedule, and one for the rest"
            )
        self._steps = 0

    strength = _Fixed("scale multiplies the penalty's own strength: set scale")
    penalty = _Fixed(_HOW := "entries shows what is penalized and how; remove() this regularizer, and make another")
    select = _Fixed(_HOW)

    _is_used = True  # whether it was attached, asked for its value, looked at, or refused; else it warns when it dies

    @property
    def model(self) -> nn.Module:
        """What is penalized."""
        return self._model

    @property
    def mode(self) -> Mode:
        """How the penalty acts."""
        return self._mode

    @property
    def entries(self) -> Sequence[Assignment]:
        """Each parameter of the model once, with its penalty or the reason why it has none."""
        self._is_used = True
        return self._penalized.entries

    @property
    def scale(self) -> Scale:
        """The factor of every penalty."""
        return self._scales.given

    @scale.setter
    def scale(self, scale: Scale) -> None:
        before = self._scales
        self._scales = Scales.of(scale, self.model, self.entries if isinstance(scale, Mapping) else ())
        if before.own or self._scales.own:  # which weights share one has changed
            self._changed()

    # -- mode "loss": the penalty as a number ---------------------------------------------------------------------

    def value(self) -> Tensor:
        """``scale * sum R(w)`` over the penalized parameters, differentiable. It may be called in every mode.

        If the parameters are sharded over processes, every process must call it; all get the same value. Within a
        forward pass that :func:`torch.func.functional_call` runs, it is made of the tensors given there, elsewhere of
        the model's own parameters. Transforms of ``torch.func`` take no derivatives by these, which is warned of.

        Returns:
            A 0-d tensor; for a :class:`~torchreg.Stacked` model a tensor of shape ``(members,)``.

        Raises:
            ValueError: penalized parameters were replaced after the regularizer was created, as ``fully_shard`` does.
        """
        self._is_used = True
        given = self._check_parameters()
        few = None if given else self._penalized.few
        if few is not None and self.compile and few.has_kernels:
            few = None
        if few is not None and type(scale := self._scales.given) is float and few.is_current():
            return few.value(scale)
        pairs = self._trained(given)
        return self._total(pairs) if pairs else torch.zeros(())

    def terms(self) -> dict[str, Tensor]:
        """The value of each kind of penalty, such as ``{"L1": tensor, "L2": tensor}``; for logging."""
        self._is_used = True
        kinds: dict[str, list[Trained]] = {}
        for penalty, weight, key in self._trained(self._check_parameters()):
            for term in penalty.terms:
                kinds.setdefault(term.label, []).append((term, weight, key))
        return {kind: self._total(pairs) for kind, pairs in kinds.items()}

    def _trained(self, given: Mapping[Tensor, Tensor]) -> list[Trained]:
        if not given:
            warn_of_constants("Regularizer")
        return self._penalized.trained(given)

    def _total(self, pairs: Sequence[Trained]) -> Tensor:
        return total(pairs, self._scales, self.compile, self._penalized.has_joint)

    def penalize(self, criterion: Callable[..., Tensor]) -> PenalizedLoss:
        """The criterion plus the penalty while the model is in training mode; in evaluation mode the criterion alone.

        Raises:
            ValueError: the mode is not "loss", so that the penalty would be applied twice.
        """
        was_used, self._is_used = self._is_used, True
        if self.mode != "loss":
            raise ValueError(
                f"Regularizer: penalize() is for mode 'loss', this one has mode {self.mode!r}, which already acts "
                "in the optimizer: use one or the other"
            )
        loss = PenalizedLoss(self, criterion)
        self._is_used = was_used  # by the call of the loss, and not before
        return loss

    def _take(self, penalized: Penalized) -> None:
        self._penalized = penalized
        self._changed()
        self.scale = self.scale

    def _changed(self) -> None:
        """Called when what is penalized has changed, or which weights share a scale."""

    def _check_parameters(self) -> Mapping[Tensor, Tensor]:
        """Looks at the model again if its modules or parameters have changed.

        Returns:
            The tensors that ``functional_call`` has put in place of parameters, if it is running.

        Raises:
            ValueError: the model no longer holds a penalized parameter.
        """
        if torch.compiler.is_compiling() or self._penalized.is_current():
            return {}
        if given := self._penalized.given():
            return given
        self._look_again()
        return {}

    def _look_again(self) -> None:
        self._take(self._penalized.looked_again())

    def _advance(self) -> None:
        self._steps += 1
        self._follow_schedule()

    def _follow_schedule(self) -> None:
        if self.schedule is not None:
            scale = self.schedule(self._steps)
            try:
                self.scale = scale
            except ValueError:
                raise ValueError(
                    f"Regularizer: schedule must return a finite scale >= 0, got {scale!r} at step {self._steps}"
                ) from None

    # -- saving ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The number of steps, the scale, and the references and weights that penalties have taken from the model.

        It can be loaded with ``torch.load(weights_only=True)``. While the regularizer is attached, the optimizer's
        ``state_dict`` contains it, so that it need not be saved.
        """
        scale = tree_map_only(Tensor, lambda own: own.detach().clone(), self.scale)
        return {"steps": self._steps, "scale": scale} | taken(self.entries)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` saved."""
        expected = self.state_dict()
        if set(state) != set(expected):
            keys = " and ".join(map(repr, expected))
            raise ValueError(f"Regularizer: state must have the keys {keys}, got {sorted(state)}")
        steps = checked_steps("Regularizer", state["steps"])
        tensors = {key: value for key, value in state.items() if key not in ("steps", "scale")}
        penalized = self._penalized.with_taken(tensors) if tensors else None
        self.scale, self._steps = state["scale"], steps
        if penalized is not None:
            self._take(penalized)

    def __del__(self) -> None:
        if not self._is_used:
            warn_of_no_use(self._penalized.entries, self.mode)
