"""Files that are spoiled on purpose, and kills at any moment: `make fuzz` and `make torture`."""
