"""Differential privacy, fairness, federated learning, robustness, explanations, coded computing, social choice."""
