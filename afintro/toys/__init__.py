"""Models that need no download: the organism with its grammar, and the chat base of the introspection study."""
