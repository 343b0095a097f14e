"""Data: sources, row shapes, the dataset cache, tokens, splits and batches."""
