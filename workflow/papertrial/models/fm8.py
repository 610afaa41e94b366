"""fm8: class-conditional diffusion models of 8 x 8 Fashion-MNIST (residual MLPs of two widths): teachers and bases."""

from papertrial.models.picture_denoisers import denoiser, load, network, passes, shape, train

__all__ = ["denoiser", "load", "network", "passes", "shape", "train"]
