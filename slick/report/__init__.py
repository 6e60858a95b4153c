"""Numbers to figures, tables and one page that opens anywhere."""

from slick.report.build import ReportConfig, make_report

__all__ = ["ReportConfig", "make_report"]
