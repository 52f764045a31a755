"""Mutated configurations and corrupted records: each must end with a line and exit code 2, and never in a traceback."""
