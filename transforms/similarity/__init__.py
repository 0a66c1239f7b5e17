"""Comparisons of vectors: neighbours, copies, outliers, a plane."""
