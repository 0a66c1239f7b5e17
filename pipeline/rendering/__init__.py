"""Rows and figures as text, Parquet, SVG and HTML."""
