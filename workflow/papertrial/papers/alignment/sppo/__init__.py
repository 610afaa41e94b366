"""Self-Play Preference Optimization (Wu et al. 2024, arXiv:2405.00675)."""
