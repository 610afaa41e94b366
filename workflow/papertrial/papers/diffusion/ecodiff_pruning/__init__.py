"""Effortless Efficiency: Low-Cost Pruning of Diffusion Models (2412.02852)."""
