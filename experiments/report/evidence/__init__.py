"""A study that repeats a published one, reduced to a small record, and the page of all such records."""

from .measures import check_measures
from .page import write_page
from .place import check_place
from .record import Evidence, Origin, reduce, write_record

__all__ = ["Evidence", "Origin", "check_measures", "check_place", "reduce", "write_page", "write_record"]
