"""Optimizers as rules: one file each, one interface (see rule.py), the same code for numpy and torch."""
