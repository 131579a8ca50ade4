"""Models behind OpenAI-compatible servers: judges, and organisms that answer from elsewhere."""
