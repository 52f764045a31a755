"""Optimizers with decay decoupled from the gradient."""

from torchreg.optim.decoupled import SGDW, AdamW, DecoupledDecay

__all__ = ["SGDW", "AdamW", "DecoupledDecay"]
