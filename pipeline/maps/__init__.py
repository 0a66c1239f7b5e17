"""The rows on a plane."""
