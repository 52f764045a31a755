"""WHAT a penalty does in an optimizer's step: in-place updates, and compiled kernels for large weights."""
