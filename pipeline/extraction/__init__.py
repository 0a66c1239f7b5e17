"""Images to features: the run."""
