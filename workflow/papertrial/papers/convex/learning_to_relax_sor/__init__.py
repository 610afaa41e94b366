"""Bandits that choose SOR's omega across systems: Khodak et al., arXiv:2310.02246."""
