"""Reports of runs, each one HTML page."""

from aigc_ext.reporting.page import METRICS_FILE, ROBUSTNESS_FILE, read_rows, write_report

__all__ = ["METRICS_FILE", "ROBUSTNESS_FILE", "read_rows", "write_report"]
