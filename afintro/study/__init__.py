"""The introspection study: variants, their evaluations, and the report on what they show."""
