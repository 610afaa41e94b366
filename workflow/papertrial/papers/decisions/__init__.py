"""Bandits, online decisions, planning, reinforcement learning, control."""
