"""B2-DiffuRL: backward progressive training and branch-based sampling for sparse rewards."""
