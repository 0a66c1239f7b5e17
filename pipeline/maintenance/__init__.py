"""Commands on an OUT that is there."""
