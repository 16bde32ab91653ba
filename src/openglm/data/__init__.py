"""Text to batches: sources, token stores, packing and blank infilling. Pure numpy, no torch."""
