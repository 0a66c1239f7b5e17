"""The bases: networks as tables of layers or in files, their weights, and what pixels become for them."""
