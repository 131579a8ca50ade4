"""The evaluations of a variant, one a file: ``measure`` asks, ``summarise`` scores."""
