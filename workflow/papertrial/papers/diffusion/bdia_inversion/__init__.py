"""Exact Diffusion Inversion via Bi-directional Integration Approximation (2307.10829)."""
