"""Numbers below the normal range of a float, with which a CPU computes many times slower than with others.

They arise in every long training with momentum. Where a gradient stays 0, as that of a dead unit does, momentum shrinks
until its product with the optimizer's factor is rounded to itself. So it never becomes 0, and slows each further step.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def flush() -> None:
    """Lets them count as 0 in this process, on CPUs that can do so.

    Threads have the setting of the one that starts them. So this comes before torch's first work in several threads.
    """
    torch.set_flush_denormal(True)


@contextmanager
def flushed() -> Iterator[None]:
    """As :func:`flush`, until the end of the context."""
    before = torch.full((), 1e-40).item() == 0
    flush()
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
