"""A head from stored features."""
