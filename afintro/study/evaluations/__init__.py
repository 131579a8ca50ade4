"""The evaluations of a variant, one in each file: ``measure`` asks the questions, ``summarize`` scores the answers."""
