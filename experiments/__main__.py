"""``python -m experiments``: the command line, or a line that says what it needs."""

import os
import sys

if __name__ == "__main__":  # not where a worker of a sweep imports it: what is imported here takes seconds
    os.environ.pop(
        "MPLBACKEND", None
    )  # no command draws by matplotlib, which refuses a name it lacks when others import it
    try:
        from experiments.cli import main
    except ModuleNotFoundError as error:
        print(f"error: {error.name} is not installed: pip install -e '.[experiments]' in the clone", file=sys.stderr)
        sys.exit(2)
    main()
