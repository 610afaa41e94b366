"""Not All Prompts Are Made Equal: prompt-based pruning of text-to-image diffusion models (APTP)."""
