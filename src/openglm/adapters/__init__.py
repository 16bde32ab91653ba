"""Small trained additions to a model."""
