"""Gradient is All You Need? Consensus-based optimization as a gradient method (arXiv 2306.09778)."""
