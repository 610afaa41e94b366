"""Greedy block coordinate descent: Nutini, Laradji and Schmidt, arXiv:1712.08859."""
