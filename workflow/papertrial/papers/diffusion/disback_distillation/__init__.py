"""Distribution Backtracking Builds A Faster Convergence Trajectory for One-step Diffusion Distillation (2024)."""
