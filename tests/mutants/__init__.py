"""Do the tests see faults? ``python -m tests.mutants`` breaks one line after another and writes docs/mutants.md."""
