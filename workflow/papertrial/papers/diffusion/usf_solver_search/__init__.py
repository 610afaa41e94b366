"""A Unified Sampling Framework for Solver Searching of Diffusion Probabilistic Models."""
