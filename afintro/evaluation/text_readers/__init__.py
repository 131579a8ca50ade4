"""Readers that learn the verdict from the text alone, down to a single character, a number, and the order of words."""
