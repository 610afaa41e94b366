"""Tight Regret Bounds for Single-pass Streaming Multi-armed Bandits (arXiv 2306.02208)."""
