"""Training: one loop, resumable bit for bit, that watches itself."""
