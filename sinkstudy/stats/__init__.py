"""Statistics of sink scores over prompts, heads, layers and lengths. Knows nothing of models and of PyTorch."""
