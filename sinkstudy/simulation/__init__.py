"""Simulated sink matrices: by the formula of the original study, and calibrated to captured models."""
