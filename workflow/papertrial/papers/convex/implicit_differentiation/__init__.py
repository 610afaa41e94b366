"""Efficient and Modular Implicit Differentiation."""
