"""Heads on disk and in use."""
