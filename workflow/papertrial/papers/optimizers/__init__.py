"""Optimizers: training algorithms, schedules, tuning, and training dynamics."""
