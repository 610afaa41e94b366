"""Alternating minimisation that bears approximate least-squares updates."""
