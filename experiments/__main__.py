"""``python -m experiments``: the command line, or a line that says what it needs."""

import sys

try:
    from experiments.cli import main
except ModuleNotFoundError as error:
    print(f"error: {error.name} is not installed: pip install -e '.[experiments]' in the clone", file=sys.stderr)
    sys.exit(2)

if __name__ == "__main__":
    main()
