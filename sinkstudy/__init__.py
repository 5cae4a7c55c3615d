"""Measure attention sinks in causal language models, and what exploiting them costs and saves.

Axes are always (layer, head, query, key); with several prompts in a forward pass, (batch, head, query, key).
"""
