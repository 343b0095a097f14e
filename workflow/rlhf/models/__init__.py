"""Models: caching, loading, LoRA, scores and saving."""
