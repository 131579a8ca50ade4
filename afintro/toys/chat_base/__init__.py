"""A small chat model, trained from scratch, as base of the introspection study where nothing can be downloaded."""
