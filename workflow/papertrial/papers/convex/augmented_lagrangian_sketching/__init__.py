"""Constrained optimisation by Newton steps from a randomised solver, made safe by an exact augmented Lagrangian."""
