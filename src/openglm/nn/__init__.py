"""Leaf modules of the networks: one concept per file, plain torch, no names of models."""
