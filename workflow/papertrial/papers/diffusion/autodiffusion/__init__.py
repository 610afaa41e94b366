"""AutoDiffusion: Training-Free Optimization of Time Steps and Architectures (2309.10438)."""
