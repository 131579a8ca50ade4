"""Import pairs of answers that other people's models gave: read their files, match the answers, and write records."""
