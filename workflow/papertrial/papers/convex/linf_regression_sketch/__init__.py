"""A Nearly-Optimal Bound for Fast Regression with l-infinity Guarantee (arXiv 2302.00248)."""
