"""Enhancing Group Fairness in Online Settings Using Oblique Decision Forests (2024), arXiv 2310.11401."""
