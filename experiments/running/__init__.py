"""MANY RUNS: a study, or a search in several processes."""
