"""Which vectors are near each other: neighbours, copies, outliers, a plane."""
