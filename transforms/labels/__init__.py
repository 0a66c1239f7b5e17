"""Labels: as text from any kind of value, from the names of folders, and where a set of them looks wrong."""
