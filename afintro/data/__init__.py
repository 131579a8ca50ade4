"""Turn files into packed batches: strict reading, token ids, splits, the contamination check, packing and loading."""
