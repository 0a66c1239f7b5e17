"""An OUT on disk: its files, and how they are written, listed and read."""
