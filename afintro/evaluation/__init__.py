"""Metrics, baselines and statistics: what turns answers into a claim."""
