"""Optimal transport with at most k entries a column: Liu, Puigcerver and Blondel, arXiv:2209.15466."""
