"""Bounds of what one call may ask for; `SamplingParams` has further ones."""

MOST_COMPLETIONS = 16
MOST_STOPS = 16
MOST_MESSAGES = 2048
MOST_TOOLS = 128
MOST_PROMPTS = 64
MOST_TEXTS = 2048
"""To become vectors in one call: OpenAI's limit."""
