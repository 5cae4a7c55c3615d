"""The explorer: one page, without network, that recomputes the study at any length and threshold from the captures."""

from sinkstudy.explorer.page import write_page

__all__ = ["write_page"]
