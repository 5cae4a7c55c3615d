"""Figures of the study. Each function takes tables and returns a matplotlib Figure; nothing is computed anew here."""
