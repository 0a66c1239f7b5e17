"""The demo: samples, extracted and looked at."""
