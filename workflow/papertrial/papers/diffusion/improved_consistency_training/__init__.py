"""Improved techniques for training consistency models (arXiv 2310.14189)."""
