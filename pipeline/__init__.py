"""What runs: one module per command, each a plain function first. How a step works is in `transforms`."""
