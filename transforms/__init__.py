"""How one step works: reading, decoding, embedding, writing. What runs them is in `pipeline`."""
