"""A study that repeats a published one, reduced to a small record, and the page of all such records."""

from .page import write_page
from .record import Origin, reduce, write_record

__all__ = ["Origin", "reduce", "write_page", "write_record"]
