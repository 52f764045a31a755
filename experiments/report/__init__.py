"""REPORTS: tables and pages made of folders of records."""

from experiments.report.page import table, write_page
from experiments.report.summary import summarize

__all__ = ["summarize", "table", "write_page"]
