"""AutoCoreset: an automatic practical coreset construction framework (Maalouf et al. 2023)."""
