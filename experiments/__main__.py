"""``python -m experiments``: the command line, or a line that says what it needs."""

import os
import signal
import sys

from . import IS_INSTALLED


def main() -> None:
    """Runs the command line."""
    os.environ.pop("MPLBACKEND", None)  # matplotlib, where another package imports it, would refuse a name it lacks
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torch would warn in each process of torchrun that all weights are used
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        from . import cli
    except ModuleNotFoundError as error:
        how = "" if IS_INSTALLED else "-e "
        print(f"error: {error.name} is not installed: pip install {how}'.[experiments]' in the clone", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # the imports take seconds
        sys.exit(128 + signal.SIGINT)
    cli.main()


if __name__ == "__main__":  # not where a worker of a sweep imports it: what is imported here takes seconds
    main()
