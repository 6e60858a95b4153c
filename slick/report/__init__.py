"""Numbers to figures, tables and one page that opens anywhere."""

from slick.report.build import ReportConfig, make_report
from slick.report.compare import compare_studies

__all__ = ["ReportConfig", "compare_studies", "make_report"]
