"""The report page of a run: one file that needs nothing from the network."""

from planter.report.contents import Chosen, Comparison, Facts, Importances, Report
from planter.report.render import page, without_password

__all__ = ["Chosen", "Comparison", "Facts", "Importances", "Report", "page", "without_password"]
