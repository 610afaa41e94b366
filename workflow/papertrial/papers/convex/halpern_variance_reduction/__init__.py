"""Variance Reduced Halpern Iteration for Finite-Sum Monotone Inclusions (arXiv 2310.02987)."""
