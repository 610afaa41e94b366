"""ddpm2d: noise predictors at DDPM's 1000 levels, one small MLP for each of the four densities in the plane."""

from papertrial.models.plane_denoisers import DDPM_LEVELS, denoiser, load, network, passes, train

__all__ = ["DDPM_LEVELS", "denoiser", "load", "network", "passes", "train"]
