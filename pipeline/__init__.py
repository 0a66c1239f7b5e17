"""The commands, a folder for each family. How one step works is in `transforms`."""
