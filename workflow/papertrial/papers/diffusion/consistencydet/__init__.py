"""ConsistencyDet: Robust Object Detector with Denoising Paradigm of Consistency Model (2404.07773)."""
