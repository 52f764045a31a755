"""CALLBACKS of trainers that attach a regularizer, log it to the trainer's own loggers and resume it.

Each trainer has a module of its own, which imports the trainer: :mod:`torchreg.integrations.lightning`,
:mod:`torchreg.integrations.transformers`, :mod:`torchreg.integrations.skorch`, each with a ``RegularizerCallback``, and
:mod:`torchreg.integrations.accelerate` with a function that logs.
"""
