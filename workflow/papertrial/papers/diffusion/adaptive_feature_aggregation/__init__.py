"""AFA: an ensemble of diffusion models that shares features, weighted by small trained aggregators."""
