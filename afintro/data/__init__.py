"""From files to packed batches: strict I/O, prompt text to ids, packing, splits and the contamination check."""
