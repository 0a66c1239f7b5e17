"""Judging a head: splits, metrics, intervals."""
