"""Papertrial: every paper gets a trial."""
