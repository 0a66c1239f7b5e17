"""Encoded images to features: one batch, one unit, and both as Beam transforms."""
