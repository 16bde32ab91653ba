"""`extra` of a chat call: code is written between what stands before and behind it (CodeGeeX)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated

from pydantic import Field

from openglm.serve.chat_call import ChatAnswer, ChatCall, ChatPiece
from openglm.serve.errors import ServeError
from openglm.serve.fields import Wire
from openglm.serve.hosted import Hosted
from openglm.serve.infilling import Gap, can_infill, infill
from openglm.serve.writing import Writing

MOST_CONTEXTS = 256
LANGUAGES = {
    "cpp": "C++",
    "c-sharp": "C#",
    "csharp": "C#",
    "css": "CSS",
    "html": "HTML",
    "javascript": "JavaScript",
    "js": "JavaScript",
    "objectivec": "Objective-C",
    "objective-c": "Objective-C",
    "php": "PHP",
    "sql": "SQL",
    "typescript": "TypeScript",
}
"""BigModel's names of languages -> CodeGeeX's, where they are not the same with a capital."""


class Target(Wire):
    """Where code is missing."""

    path: str | None = None
    language: str
    code_prefix: str
    code_suffix: str

    @property
    def spelled(self) -> str:
        """The language as CodeGeeX spells it; the SDK's own test does not keep to its list."""
        name = self.language.strip()
        return LANGUAGES.get(name.lower(), name[:1].upper() + name[1:])


class Context(Wire):
    """Another file."""

    path: str
    code: str


class Extra(Wire):
    """Code with a gap, and other files that it may depend on."""

    target: Target
    contexts: Annotated[list[Context], Field(max_length=MOST_CONTEXTS)] | None = None

    def gap(self) -> Gap:
        """The same in no dialect."""
        target = self.target
        files = [(context.path, context.code) for context in self.contexts or ()]
        return Gap(target.code_prefix, target.code_suffix, target.spelled, target.path or "", files)


class CodeAnswer(ChatAnswer):
    """Code as the model writes it: white space in front of it counts.

    Args:
        hosted: the model.
        writing: that writes it.
    """

    def __init__(self, hosted: Hosted, writing: Writing) -> None:
        super().__init__(hosted, writing, (), "")

    async def pieces(self) -> AsyncGenerator[ChatPiece, None]:
        """See `ChatAnswer.pieces`."""
        async with aclosing(self.writing.parts()) as parts:
            async for part in parts:
                texts = [part.text] if part.text else []
                yield ChatPiece(part.index, texts, part.logprobs, part.finish_reason)


async def complete(hosted: Hosted, extra: Extra, call: ChatCall) -> CodeAnswer:
    """Prepares the code that is missing; of the call counts how it is written, not what it says.

    Raises:
        ServeError: the model cannot do that.
    """
    if call.tools or call.schema is not None:
        message = "extra asks for code: it goes with neither tools nor response_format"
        raise ServeError("unsupported", message, "extra")
    if not can_infill(hosted):
        message = f"{hosted.name} does not write between what stands before and behind"
        raise ServeError("unsupported", message, "extra")
    writing = await infill(hosted, [extra.gap()], call.sampling, call.place)
    return CodeAnswer(hosted, writing)
