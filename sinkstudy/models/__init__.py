"""Where a model comes from, whether it is whole, and loading it."""
