"""One data module a file: what goes in, and what counts as right."""
