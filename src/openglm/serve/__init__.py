"""The HTTP API and the web page: two dialects over the same engines."""
