"""Real monitored and unmonitored answers as a benchmark: what can be told of them from the text, within and between models."""
