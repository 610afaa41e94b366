"""DualFast: Dual-Speedup Framework for Fast Sampling of Diffusion Models (2506.13058)."""
