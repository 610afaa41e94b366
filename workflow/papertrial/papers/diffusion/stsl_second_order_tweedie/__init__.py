"""Beyond First-Order Tweedie: Solving Inverse Problems using Latent Diffusion (2312.00852)."""
