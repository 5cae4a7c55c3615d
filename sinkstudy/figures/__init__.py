"""Figures of the study. Each function takes tables and returns a matplotlib Figure; no statistics are computed here."""
