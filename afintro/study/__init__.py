"""The introspection study: variants, their evaluations, and what they show."""
