"""How each kind of model writes conversations down: one value per kind of tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from openglm.chat import replies, templates
from openglm.chat.messages import Message
from openglm.chat.replies import Reply
from openglm.errors import RequestError
from openglm.tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """The conversations of one kind of model.

    Args:
        write: messages to the ids that ask for the next one.
        read: what the model wrote, and the conversation before it, to its answer.
        answer: an answer to the ids that the model is to write behind `write`, without its end.
    """

    write: Callable[[Tokenizer, Sequence[Message]], list[int]]
    read: Callable[[str, Sequence[Message]], Reply]
    answer: Callable[[Tokenizer, Message], list[int]]


CHATGLM = ChatFormat(templates.chatglm, replies.chatglm, templates.plain_answer)
FORMATS = {
    "chatglm": CHATGLM,
    "chatglm-icetk": CHATGLM,
    "chatglm2": ChatFormat(templates.chatglm2, replies.chatglm2, templates.plain_answer),
    "chatglm3": ChatFormat(templates.with_roles, replies.chatglm3, templates.answer_of_role),
    "glm4": ChatFormat(templates.glm4, replies.glm4, templates.answer_of_role),
}


def has_format(tokenizer: Tokenizer) -> bool:
    """Whether models with this tokenizer chat."""
    return tokenizer.kind in FORMATS


def prompt_ids(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """The ids that ask the model for the next message.

    Raises:
        RequestError: the model does not chat, or has no such roles or order of them.
    """
    if not has_format(tokenizer):
        raise RequestError(
            "this model was not trained to chat", hint="use generate, or fill with blanks"
        )
    return FORMATS[tokenizer.kind].write(tokenizer, messages)


def answer_ids(tokenizer: Tokenizer, message: Message) -> list[int]:
    """The ids of an answer behind `prompt_ids`, without the token that ends it."""
    return FORMATS[tokenizer.kind].answer(tokenizer, message)


def read_reply(kind: str, text: str, asked: Sequence[Message]) -> Reply:
    """The answer in `text`.

    Args:
        kind: of the tokenizer.
        text: what the model wrote, without its end token.
        asked: the conversation before it.
    """
    return FORMATS[kind].read(text, asked)
