"""Diffusion and flow models: samplers, distillation, inversion, inverse problems, pruning, bridges."""
