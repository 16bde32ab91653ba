"""`extra` of a chat call: code is written between what stands before and behind it (CodeGeeX).

CodeGeeX4 reads both in the layout of its published guide, as a user's message; it has GLM-4's
vocabulary, so every such model is asked that way. Models that fill blanks get one.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated

from pydantic import Field

from openglm.chat import Message
from openglm.engine.prompt import OFFICIAL_MASKS
from openglm.errors import RequestError
from openglm.serve.chat_call import ChatAnswer, ChatCall, ChatPiece
from openglm.serve.errors import ServeError
from openglm.serve.fields import Wire
from openglm.serve.hosted import Hosted
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

    def message(self) -> str:
        """As CodeGeeX4 reads it: what stands behind comes first.

        Source: `guides/Infilling_guideline.md` of the CodeGeeX4 repository.
        """
        target = self.target
        files = (f"###REFERENCE:\n###PATH:{c.path}\n{c.code}\n" for c in self.contexts or ())
        return (
            f"{''.join(files)}###PATH:{target.path or ''}\n###LANGUAGE:{target.spelled}\n"
            f"###MODE:BLOCK\n<|code_suffix|>{target.code_suffix}"
            f"<|code_prefix|>{target.code_prefix}<|code_middle|>"
        )

    def text(self, blank: str) -> str:
        """As a text with a blank; language and paths are comments, as in CodeGeeX's prompts.

        Raises:
            RequestError: it has further blanks.
        """
        target = self.target
        files = "".join(f"# path: {c.path}\n{c.code}\n" for c in self.contexts or ())
        path = f"# path: {target.path}\n" if target.path else ""
        before = f"{files}# language: {target.spelled}\n{path}{target.code_prefix}"
        for text in (before, target.code_suffix):
            if any(mask in text for mask in OFFICIAL_MASKS):
                raise RequestError("the code has blanks of its own", hint="use /v1/fill")
        return f"{before}{blank}{target.code_suffix}"


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
    if hosted.kind == "glm4":
        asked = [Message("user", extra.message())]
        writing = await hosted.prepare(
            [asked], "chat", call.sampling, place=call.place, opening="\n"
        )
    elif hosted.can_fill:
        text = extra.text(hosted.blank)
        writing = await hosted.prepare([text], "fill", call.sampling, place=call.place)
    else:
        message = f"{hosted.name} does not write between what stands before and behind"
        raise ServeError("unsupported", message, "extra")
    return CodeAnswer(hosted, writing)
