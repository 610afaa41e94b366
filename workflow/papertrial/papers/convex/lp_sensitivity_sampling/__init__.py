"""Sharper Bounds for lp Sensitivity Sampling (arXiv 2306.00732)."""
