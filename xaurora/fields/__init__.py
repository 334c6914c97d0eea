"""A Dataset as canonical fields: names, units, times, targets and the grid."""
