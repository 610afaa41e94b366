"""opt-bench: fixed workloads, one training loop and one way of tuning and counting, for everything that optimizes.

numpy: schedule, splits, adult, tuning, memory.    torch: networks, workloads, flat, training.
"""
