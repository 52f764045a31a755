"""REPORTS: tables and pages made of folders of records."""

from experiments.report.comparison import compare, text_of, write_comparison
from experiments.report.page import table, write_page
from experiments.report.summary import summarize

__all__ = ["compare", "summarize", "table", "text_of", "write_comparison", "write_page"]
