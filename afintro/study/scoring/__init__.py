"""Score rows: read answers in plain words, compare adapter and base with intervals, summarize detection and naming."""
