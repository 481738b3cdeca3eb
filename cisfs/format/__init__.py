"""bytes to values and back: geometry, headers, names, holes, journal records; no I/O."""
