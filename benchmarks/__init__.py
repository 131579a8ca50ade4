"""Side-by-side measurements against what people use today; results as JSON in ``benchmarks/results``."""
