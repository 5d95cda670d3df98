"""One self-contained page about a run: timeline, page ownership, costs, coverage, log."""

from pkvm_emu.report.page import save_html, to_html

__all__ = ["save_html", "to_html"]
