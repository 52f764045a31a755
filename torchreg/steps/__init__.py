"""WHAT a penalty does in an optimizer's step: the in-place updates, and the compiled kernels for large weights."""
