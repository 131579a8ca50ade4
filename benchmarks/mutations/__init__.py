"""Whether the tests notice faults: mutations of the package, and for each the tests that run the mutated line.

``python -m benchmarks.mutations --label NAME`` first runs the tests once and records which of them runs which line, then makes
one mutation after the other in a copy of the commit and runs the tests that cover it, fast ones first, up to the first
failure. ``--select`` chooses the tests as pytest's own arguments do. Both steps go on where they were stopped: the recording
stays in its folder until that is deleted, and the results are written after every mutation.

What a mutated line does only while a cache is filled is not seen, because the mutations start from the recording's cache.
"""
