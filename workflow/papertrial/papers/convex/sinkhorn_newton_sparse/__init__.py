"""Sinkhorn, then Newton with a sparse Hessian: Tang et al., arXiv:2401.12253."""
