"""Forty-one faults that a maintainer might make, one line each, across all of ``torchreg/`` and ``experiments/``."""

from typing import NamedTuple


class Mutant(NamedTuple):
    """One fault: a text that stands once in a file, what stands there instead, and what that breaks."""

    file: str
    text: str
    replacement: str
    breaks: str


MUTANTS = (
    # -- torchreg/functional, hooks, schedules --------------------------------------------------------------------
    Mutant(
        "torchreg/functional/shrinkage.py",
        "moved = away.abs() <= threshold, w - away.sgn() * threshold",
        "moved = away.abs() <= threshold, w + away.sgn() * threshold",
        "L1-SP pushes weights away from their reference: a wrong sign",
    ),
    Mutant(
        "torchreg/functional/masks.py",
        "    if rest:\n        shared = ",
        "    if False:\n        shared = ",
        "dropout rates are rounded to 1/256",
    ),
    Mutant(
        "torchreg/functional/dropping.py",
        "return keep(grad, mask, ctx.scale), None, None",
        "return keep(grad, mask, 1.0), None, None",
        "the gradient of a large tensor behind dropout lacks the factor 1 / (1 - p)",
    ),
    Mutant(
        "torchreg/functional/losses.py",
        "counted = own != ignored",
        "counted = own == own",
        "the mean over examples of a stack's losses counts the ignored targets",
    ),
    Mutant(
        "torchreg/hooks/step.py",
        "        if self._depth > 1:\n            return None",
        "        if self._depth > 2:\n            return None",
        "a step that calls super().step() is penalized twice",
    ),
    Mutant(
        "torchreg/hooks/step.py",
        "return lr if found_inf is None else lr * (1 - found_inf.reshape(()).clamp(max=1))",
        "return lr",
        "weights shrink in a step that a fused optimizer skips for infinite gradients",
    ),
    Mutant(
        "torchreg/schedules.py",
        "return min(max(step - self.after, 0) / self.steps, 1.0)",
        "return min(step / self.steps, 1.0)",
        "a schedule begins at once, whatever `after` says",
    ),
    # -- torchreg/selection ---------------------------------------------------------------------------------------
    Mutant(
        "torchreg/selection/selectors.py",
        'f"{info.param.ndim}-D" if info.param.ndim < 2 else None',
        'f"{info.param.ndim}-D" if info.param.ndim < 1 else None',
        "vectors whose names say nothing are penalized: an exemption is skipped",
    ),
    Mutant(
        "torchreg/selection/parameters.py",
        "exemption = exempt.get(unwrapped(name)) or _mark_of(param)",
        "exemption = exempt.get(unwrapped(name))",
        "a parameter with the attribute _no_weight_decay is penalized",
    ),
    # -- torchreg/penalties ---------------------------------------------------------------------------------------
    Mutant(
        "torchreg/penalties/elementwise.py",
        "w.abs() <= self.delta * (1 + amount), ",
        "w.abs() <= self.delta, ",
        "the proximal operator of Huber changes from its parabola to its straight part too early",
    ),
    Mutant(
        "torchreg/penalties/groups.py",
        "f.group_soft_threshold(part.rows, own * self._rest * _root(part))",
        "f.group_soft_threshold(part.rows, own * self._rest)",
        "the sparse group lasso thresholds groups without the root of their size",
    ),
    Mutant(
        "torchreg/penalties/spectral.py",
        "return slopes * 2 * sigma",
        "return slopes * sigma",
        "the gradient of SRIP lacks a factor of 2",
    ),
    Mutant(
        "torchreg/penalties/reference.py",
        "reference = w.clone()",
        "reference = w",
        "a reference that is the start moves with the weights",
    ),
    Mutant(
        "torchreg/penalties/complexity.py",
        "return value if is_whole else value - value.detach()",
        "return value",
        "a layer's complexity counts once for each of its parameters",
    ),
    # -- torchreg/nn ----------------------------------------------------------------------------------------------
    Mutant(
        "torchreg/nn/connect.py",
        "* (self.p / (1 - self.p))",
        "* (self.p * (1 - self.p))",
        "the variance that DropConnect takes in evaluation by moments",
    ),
    Mutant(
        "torchreg/nn/concrete.py",
        'inputs = weight.shape[1] * getattr(self.layer, "groups", 1)',
        "inputs = weight.shape[1]",
        "the entropy of concrete dropout on a grouped convolution counts the inputs of one group",
    ),
    Mutant(
        "torchreg/nn/variational.py",
        "        slope.masked_fill_(is_clamped, 0.0)\n",
        "",
        "variational dropout moves a log alpha that is at its limit",
    ),
    Mutant(
        "torchreg/nn/model/seeding.py",
        "f.mixed(rank << 32 | number)",
        "f.mixed(number)",
        "all processes draw the same dropout masks",
    ),
    Mutant(
        "torchreg/nn/model/monte_carlo.py",
        "torch.backends.mha.set_fastpath_enabled(fast)",
        "torch.backends.mha.set_fastpath_enabled(True)",
        "the fast path of attention is on after mc_dropout, also where the user had switched it off",
    ),
    Mutant(
        "torchreg/nn/model/schedule.py",
        "        self._hooks = ()\n        self._set(1.0)",
        "        self._hooks = ()",
        "a dropout schedule that is removed does not give the layers their own rates back",
    ),
    # -- torchreg/ensemble ----------------------------------------------------------------------------------------
    Mutant(
        "torchreg/ensemble/stacked.py",
        "        self._hold_frozen()\n        return {name: value[member].detach().clone()",
        "        return {name: value[member].detach().clone()",
        "the state of a frozen member holds what the optimizer has done to it since",
    ),
    # -- torchreg/steps, torchreg/regularizer ---------------------------------------------------------------------
    Mutant(
        "torchreg/steps/updates.py",
        '(-unscaled if batch.group.get("maximize") else unscaled)',
        "unscaled",
        "an optimizer that maximizes is paid for large weights in mode 'grad'",
    ),
    Mutant(
        "torchreg/steps/plan.py",
        "return gradients if is_same and self._present(gradients) == self._state else None",
        "return gradients if is_same else None",
        "a plan is kept although a weight was frozen, lost its gradient, or got other memory",
    ),
    Mutant(
        "torchreg/regularizer/regularizer.py",
        'elif mode == "decoupled" and evaluation == 0 and self._is_due:',
        'elif mode == "decoupled" and self._is_due:',
        "mode 'decoupled' acts at each evaluation of a closure, not once a step",
    ),
    Mutant(
        "torchreg/regularizer/regularizer.py",
        "        if optimizer is self._optimizers[-1]:\n            self._advance()",
        "        self._advance()",
        "a schedule counts the steps of each of several optimizers",
    ),
    Mutant(
        "torchreg/regularizer/activity.py",
        "self.is_open = model.training and self.has_reader",
        "self.is_open = self.has_reader",
        "activities of evaluation passes are penalized",
    ),
    # -- torchreg/optim -------------------------------------------------------------------------------------------
    Mutant(
        "torchreg/optim/couplings.py",
        'share * (lr if group["coupling"] == "corrected" else one)',
        "share * one",
        "the coupling 'corrected' is 'independent'",
    ),
    Mutant(
        "torchreg/optim/prox_sgd.py",
        'total = (1 - group["dampening"]) / (1 - momentum) if momentum else 1.0',
        "total = 1 / (1 - momentum)",
        "ProxSGD forgets dampening, so that its fixed point is another problem's minimum",
    ),
    Mutant(
        "torchreg/optim/cpr.py",
        "found = (counts >= 2) & (sizes - last < growths)",
        "found = (counts >= 1) & (sizes - last < growths)",
        "the bound of AdamCPR is found a step too early: off by one",
    ),
    # -- torchreg/diagnostics -------------------------------------------------------------------------------------
    Mutant(
        "torchreg/diagnostics/tracing.py",
        "(found.values == 0 if pads else found.values.isfinite())",
        "(found.values.isfinite())",
        "a constant channel is removed before a convolution that pads with zeros",
    ),
    # -- torchreg/tuning ------------------------------------------------------------------------------------------
    Mutant(
        "torchreg/tuning/online/hypergradient.py",
        "return -update.step * slope / (1 + update.step * update.scale * penalty._curvature), gradient",
        "return -update.step * slope, gradient",
        "the hypergradient of a proximal step with curvature",
    ),
    Mutant(
        "torchreg/tuning/online/held_out.py",
        "manual_seed(self.seed + a_pass)",
        "manual_seed(self.seed)",
        "each pass over the held-out examples has the same order",
    ),
    Mutant(
        "torchreg/tuning/path/folds.py",
        "        order = order[y[order].argsort(stable=True)]",
        "        order = order[y.argsort(stable=True)]",
        "folds are no longer drawn class by class",
    ),
    # -- torchreg/integrations ------------------------------------------------------------------------------------
    Mutant(
        "torchreg/integrations/attachment.py",
        "if _is_attached(self.attached_) and list(map(id, found)) == list(map(id, self.optimizers_)):",
        "if _is_attached(self.attached_):",
        "a second fit of a trainer, with a new optimizer, is without the penalty",
    ),
    # -- experiments ----------------------------------------------------------------------------------------------
    Mutant(
        "experiments/config/names.py",
        'return re.sub(r"[^\\w.+-]+", "_", name).lstrip(".") or "_"',
        'return re.sub(r"[^\\w.+-]+", "_", name) or "_"',
        "an arm whose name begins with two dots is written outside of its folder",
    ),
    Mutant(
        "experiments/training/data/loading.py",
        "shift = torch.randint(1, classes, ",
        "shift = torch.randint(0, classes, ",
        "some of the labels that were made wrong are right: off by one",
    ),
    Mutant(
        "experiments/training/build.py",
        'if name not in weights], "weight_decay": 0.0}',
        "if name not in weights]}",
        "a study's weight decay acts on biases: an exemption is skipped",
    ),
    Mutant(
        "experiments/training/progress.py",
        '        torch.set_rng_state(state["rng"])\n',
        "",
        "a resumed run draws other dropout masks",
    ),
    Mutant(
        "experiments/running/search.py",
        "elif step < last:",
        "elif False:",
        "a resumed search judges an epoch again, with what was reported later",
    ),
    Mutant(
        "experiments/benches/timing.py",
        'yield taken[warmup:], ""',
        'yield taken, ""',
        "the laps that warm up are timed with the others",
    ),
    Mutant(
        "experiments/report/statistics.py",
        "stdev(values) / math.sqrt(len(values)) if",
        "stdev(values) if",
        "the standard error over seeds is a standard deviation",
    ),
)
