"""Chat: messages to prompt ids and answers back to messages, for each generation of models."""

from openglm.chat.formats import has_format, prompt_ids, read_reply
from openglm.chat.messages import Message, as_messages

__all__ = ["Message", "as_messages", "has_format", "prompt_ids", "read_reply"]
