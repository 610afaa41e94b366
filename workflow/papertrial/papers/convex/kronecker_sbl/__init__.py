"""Bayesian Algorithms for Kronecker-structured Sparse Vector Recovery (arXiv 2307.14719)."""
