"""Numbers to figures, tables and one page that opens anywhere."""

from slick.report.compare import compare_studies
from slick.report.config import ReportConfig
from slick.report.step import make_report

__all__ = ["ReportConfig", "compare_studies", "make_report"]
