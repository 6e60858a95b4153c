"""The report of a study, and the comparison of several studies, as self-contained HTML pages."""

from slick.report.compare import compare_studies
from slick.report.config import ReportConfig
from slick.report.step import make_report

__all__ = ["ReportConfig", "compare_studies", "make_report"]
