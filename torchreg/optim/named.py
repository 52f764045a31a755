"""The decoupled optimizers that torch lacks, by name: torch's class, with :class:`DecoupledDecay` mixed in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

import torch

from torchreg.optim import options as o
from torchreg.optim.compiled import CompiledAdam
from torchreg.optim.decoupled import DecoupledDecay


class SGDW(DecoupledDecay, torch.optim.SGD):
    r"""SGD with momentum and decoupled weight decay.

    .. math:: w_t = (1 - r_t\lambda c_t)\, w_{t-1} - \eta_t\, m_t

    where :math:`m_t` is the momentum of the gradients, without the decay; see :class:`DecoupledDecay` for the decay.

    Args:
        params, lr, momentum, dampening, nesterov, maximize, foreach, differentiable, fused: as in
            :class:`torch.optim.SGD`.
        weight_decay, coupling, timescale, decay, towards, cautious, decay_schedule: as in :class:`DecoupledDecay`.
        select, layer_decay: with a model as ``params``; as in :func:`param_groups`.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> w.grad = torch.zeros(2)
        >>> SGDW([w], lr=0.1, momentum=0.9, weight_decay=0.5).step()
        >>> w.data
        tensor([0.9500, 0.9500])

    References:
        Ilya Loshchilov, Frank Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
    """

    if TYPE_CHECKING:

        def __init__(self, params: o.Params, lr: o.Rules = 1e-3, **options: Unpack[o.SGDWOptions]) -> None: ...


class AdamW(CompiledAdam, torch.optim.AdamW):
    r"""AdamW with a choice of what the decay scales with; with coupling "lr" it is ``torch.optim.AdamW`` to the bit.

    .. math:: w_t = (1 - r_t\lambda c_t)\, w_{t-1} - \eta_t\, \hat m_t / (\sqrt{\hat v_t} + \epsilon)

    where :math:`\hat m_t, \hat v_t` are Adam's bias-corrected moments of the gradients; see :class:`DecoupledDecay` for
    the decay.

    Args:
        params, lr, betas, eps, amsgrad, maximize, foreach, capturable, differentiable, fused: as in
            :class:`torch.optim.AdamW`.
        weight_decay, coupling, timescale, decay, towards, cautious, decay_schedule: as in :class:`DecoupledDecay`.
        select, layer_decay: with a model as ``params``; as in :func:`param_groups`.
        compile: whether :func:`torch.compile` makes one kernel of the whole step where the decay comes after it: with
            ``decay="L1"`` or ``cautious=True``. Compiling takes some seconds at the first step and needs a C++
            compiler. Without a compiler there is a warning, and the usual step. Small parameters, and all parameters
            under the scaler of a fused optimizer, also take the usual step.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> w.grad = torch.zeros(2)
        >>> AdamW([w], lr=1e-3, weight_decay=0.5, coupling="independent").step()
        >>> w.data
        tensor([0.5000, 0.5000])

    References:
        Ilya Loshchilov, Frank Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
    """

    if TYPE_CHECKING:

        def __init__(self, params: o.Params, lr: o.Rules = 1e-3, **options: Unpack[o.AdamWOptions]) -> None: ...


class RMSpropW(DecoupledDecay, torch.optim.RMSprop):
    r"""RMSprop with decoupled weight decay.

    .. math:: w_t = (1 - r_t\lambda c_t)\, w_{t-1} - \eta_t\, g_t / (\sqrt{v_t} + \epsilon)

    where :math:`v_t` is the running average of the squared gradients :math:`g_t`; see :class:`DecoupledDecay` for the
    decay.

    Args:
        params, lr, alpha, eps, momentum, centered, capturable, foreach, maximize, differentiable: as in
            :class:`torch.optim.RMSprop`.
        weight_decay, coupling, timescale, decay, towards, cautious, decay_schedule: as in :class:`DecoupledDecay`.
        select, layer_decay: with a model as ``params``; as in :func:`param_groups`.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([1.0, 0.02]))
        >>> w.grad = torch.zeros(2)
        >>> RMSpropW([w], lr=0.1, weight_decay=0.5, decay="L1").step()
        >>> w.data
        tensor([0.9500, 0.0000])

    References:
        Geoffrey Hinton, Nitish Srivastava, Kevin Swersky, "Neural Networks for Machine Learning", lecture 6e, 2012.
    """

    if TYPE_CHECKING:

        def __init__(self, params: o.Params, lr: o.Rules = 1e-2, **options: Unpack[o.RMSpropWOptions]) -> None: ...


class AdagradW(DecoupledDecay, torch.optim.Adagrad):
    r"""Adagrad with decoupled weight decay.

    .. math:: w_t = (1 - r_t\lambda c_t)\, w_{t-1}
              - \tilde\eta_t\, g_t \Big/ \Big(\sqrt{\textstyle\sum_{i \le t} g_i^2} + \epsilon\Big)

    The decay follows ``lr`` itself, not :math:`\tilde\eta_t`, which is ``lr`` after ``lr_decay``; see
    :class:`DecoupledDecay` for the decay.

    Args:
        params, lr, lr_decay, initial_accumulator_value, eps, foreach, maximize, differentiable, fused: as in
            :class:`torch.optim.Adagrad`.
        weight_decay, coupling, timescale, decay, towards, cautious, decay_schedule: as in :class:`DecoupledDecay`.
        select, layer_decay: with a model as ``params``; as in :func:`param_groups`.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = AdagradW([w], lr=0.1, weight_decay=0.5, towards="start")
        >>> w.data += 1.0
        >>> w.grad = torch.zeros(2)
        >>> optimizer.step()
        >>> w.data
        tensor([1.9500, 1.9500])

    References:
        John Duchi, Elad Hazan, Yoram Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic
        Optimization", Journal of Machine Learning Research 12, 2011.
    """

    if TYPE_CHECKING:

        def __init__(self, params: o.Params, lr: o.Rules = 1e-2, **options: Unpack[o.AdagradWOptions]) -> None: ...


class NAdamW(DecoupledDecay, torch.optim.NAdam):
    r"""NAdam with decoupled weight decay; with coupling "lr" torch's own ``decoupled_weight_decay=True`` to the bit.

    .. math:: w_t = (1 - r_t\lambda c_t)\, w_{t-1} - \eta_t\, \bar m_t / (\sqrt{\hat v_t} + \epsilon)

    where :math:`\bar m_t` is the first moment of the gradients with Nesterov momentum and :math:`\hat v_t` the second
    moment; see :class:`DecoupledDecay` for the decay.

    Args:
        params, lr, betas, eps, momentum_decay, foreach, maximize, capturable, differentiable: as in
            :class:`torch.optim.NAdam`.
        weight_decay, coupling, timescale, decay, towards, cautious, decay_schedule: as in :class:`DecoupledDecay`.
        select, layer_decay: with a model as ``params``; as in :func:`param_groups`.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> w.grad = torch.zeros(2)
        >>> NAdamW([w], lr=0.1, weight_decay=0.5).step()
        >>> w.data
        tensor([0.9500, 0.9500])

    References:
        Timothy Dozat, "Incorporating Nesterov Momentum into Adam", ICLR 2016 workshop.
    """

    if TYPE_CHECKING:

        def __init__(self, params: o.Params, lr: o.Rules = 2e-3, **options: Unpack[o.NAdamWOptions]) -> None: ...


class RAdamW(DecoupledDecay, torch.optim.RAdam):
    r"""RAdam with decoupled weight decay; with coupling "lr" torch's own ``decoupled_weight_decay=True`` to the bit.

    .. math:: w_t = (1 - r_t\lambda c_t)\, w_{t-1} - \eta_t\, \rho_t\, \hat m_t / (\sqrt{\hat v_t} + \epsilon)

    where :math:`\rho_t` rectifies the variance of Adam's step. In the first steps, in which that variance is unbounded,
    the step is :math:`\eta_t \hat m_t`. See :class:`DecoupledDecay` for the decay.

    Args:
        params, lr, betas, eps, foreach, maximize, capturable, differentiable: as in :class:`torch.optim.RAdam`.
        weight_decay, coupling, timescale, decay, towards, cautious, decay_schedule: as in :class:`DecoupledDecay`.
        select, layer_decay: with a model as ``params``; as in :func:`param_groups`.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> w.grad = torch.zeros(2)
        >>> RAdamW([w], lr=0.1, weight_decay=0.5, coupling="schedule").step()
        >>> w.data
        tensor([0.5000, 0.5000])

    References:
        Liyuan Liu, Haoming Jiang, Pengcheng He, Weizhu Chen, Xiaodong Liu, Jianfeng Gao, Jiawei Han, "On the Variance
        of the Adaptive Learning Rate and Beyond", ICLR 2020.
    """

    if TYPE_CHECKING:

        def __init__(self, params: o.Params, lr: o.Rules = 1e-3, **options: Unpack[o.RAdamWOptions]) -> None: ...


class AdamaxW(DecoupledDecay, torch.optim.Adamax):
    r"""Adamax with decoupled weight decay.

    .. math:: w_t = (1 - r_t\lambda c_t)\, w_{t-1} - \eta_t\, \hat m_t / u_t

    where :math:`u_t` is the exponentially weighted largest magnitude of the gradients; see :class:`DecoupledDecay` for
    the decay.

    Args:
        params, lr, betas, eps, foreach, maximize, differentiable, capturable: as in :class:`torch.optim.Adamax`.
        weight_decay, coupling, timescale, decay, towards, cautious, decay_schedule: as in :class:`DecoupledDecay`.
        select, layer_decay: with a model as ``params``; as in :func:`param_groups`.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> w.grad = -torch.tensor([1.0, -1.0])
        >>> AdamaxW([w], lr=0.1, weight_decay=0.5, cautious=True).step()  # only the weight that falls decays
        >>> w.data
        tensor([1.1000, 0.8500])

    References:
        Diederik P. Kingma, Jimmy Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, section 7.1.
    """

    if TYPE_CHECKING:

        def __init__(self, params: o.Params, lr: o.Rules = 2e-3, **options: Unpack[o.AdamaxWOptions]) -> None: ...
