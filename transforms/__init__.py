"""The steps: reading, decoding, embedding, writing, fitting, judging. The commands that run them are in `pipeline`."""
