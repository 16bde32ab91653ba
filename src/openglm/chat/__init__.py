"""Chat: messages to prompt ids and answers back to messages, for each generation of models."""

from openglm.chat.messages import Message, as_messages
from openglm.chat.replies import read_reply
from openglm.chat.templates import has_template, prompt_ids

__all__ = ["Message", "as_messages", "has_template", "prompt_ids", "read_reply"]
