"""fm16: a class-conditional diffusion model of 16 x 16 Fashion-MNIST (a U-Net), the base of the sampler papers."""

from papertrial.models.picture_denoisers import denoiser, load, network, passes, shape, train

__all__ = ["denoiser", "load", "network", "passes", "shape", "train"]
