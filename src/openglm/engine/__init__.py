"""Inference: decoding with a cache, sampling, beam search, filling blanks, scoring."""
