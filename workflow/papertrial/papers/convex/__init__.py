"""Chapter convex: optimisation whose structure, convexity above all, can be exploited and checked exactly."""
