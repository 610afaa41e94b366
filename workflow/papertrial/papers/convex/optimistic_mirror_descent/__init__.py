"""Optimistic Online Mirror Descent for Bridging Stochastic and Adversarial Online Convex Optimization.

arXiv 2302.04552.
"""
