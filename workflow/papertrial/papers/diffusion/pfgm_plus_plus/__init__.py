"""PFGM++: a family of generative models between Poisson flows and diffusion (arXiv 2302.04265)."""
