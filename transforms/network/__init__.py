"""The VGG networks as a table of layers, and their weights."""
