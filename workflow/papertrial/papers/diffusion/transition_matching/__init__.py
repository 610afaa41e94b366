"""Transition matching: generative models whose transitions are themselves generated (arXiv 2506.23589)."""
