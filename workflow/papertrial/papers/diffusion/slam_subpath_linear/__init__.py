"""Accelerating Image Generation with Sub-path Linear Approximation Model (2404.13903)."""
