"""LMD: Faster Image Reconstruction with Latent Masking Diffusion (2312.07971)."""
