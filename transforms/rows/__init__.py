"""Stored rows as a table: keys, labels, vectors, and the images that they came from."""
