"""A head in use."""
