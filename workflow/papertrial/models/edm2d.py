"""edm2d: EDM denoisers of the four densities in the plane, one small MLP each."""

from papertrial.models.plane_denoisers import denoiser, load, network, passes, train

__all__ = ["denoiser", "load", "network", "passes", "train"]
