"""Beam's runners: their options, workers and job servers."""
