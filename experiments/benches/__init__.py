"""Benchmarks: what torchreg costs and what it saves, compared in one process."""
