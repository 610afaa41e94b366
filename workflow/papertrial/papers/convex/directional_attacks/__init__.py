"""Optimise through a trained network: adversarial attacks propose, direct search refines."""
