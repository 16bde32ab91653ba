"""Quantization as a transform on a built model; the network itself knows nothing of it."""
