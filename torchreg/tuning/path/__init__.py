"""Paths: a model trained at many strengths and validated on folds, and the choice of the best strength."""
