"""Overfitting studies from configuration files: ``python -m experiments run CONFIG``."""
