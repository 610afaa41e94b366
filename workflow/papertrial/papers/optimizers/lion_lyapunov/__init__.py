"""Lion Secretly Solves Constrained Optimization: As Lyapunov Predicts (arXiv:2310.05898)."""
