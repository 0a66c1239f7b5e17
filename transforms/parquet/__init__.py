"""Parquet files of anybody: opened wherever they lie; and of ours, which carry seals."""
