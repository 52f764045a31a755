"""REPORTS: tables and pages made of folders of records."""

from .comparison import compare, text_of, write_comparison
from .page import table, write_page
from .summary import summarize

__all__ = ["compare", "summarize", "table", "text_of", "write_comparison", "write_page"]
