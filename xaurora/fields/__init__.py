"""Canonical fields of a Dataset: recognition, units, times, targets, statistics and the grid."""
