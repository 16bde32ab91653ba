"""`glm chat`: a conversation in the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openglm.cli import options
from openglm.cli.language import say
from openglm.errors import OpenGLMError, RequestError, suggest

if TYPE_CHECKING:
    from openglm.chat import Message
    from openglm.engine.engine import Engine
    from openglm.language_model import LanguageModel

Write = Callable[[str], None]


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command("chat", help=say("Talk to a chat model.", "与对话模型聊天。"))(
        options.takes_sampling(chat)
    )


def chat(
    model: Annotated[str, typer.Argument(metavar="[MODEL]")] = "mini",
    system: Annotated[str | None, typer.Option(help=say("System message.", "系统提示词。"))] = None,
    tokenizer: options.TokenizerFolder = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    *,
    sampling: dict[str, Any],
) -> None:
    """Reads questions and streams answers; /help lists the commands, Ctrl-C stops an answer."""
    from openglm.chat import has_format
    from openglm.loading import load

    loaded = load(model, dtype=dtype, device=device, tokenizer=tokenizer)
    if not has_format(loaded.tokenizer):
        raise RequestError(
            f"{model} was not trained to chat", hint="glm generate and glm fill work with it"
        )
    session = Session(loaded, sampling, _write, system, lambda: _engine(loaded))
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        _import_line_editing()
        _write(say("/help lists the commands\n", "输入 /help 查看命令\n"))
    _converse(session, is_terminal)


def _engine(model: LanguageModel) -> Engine | None:
    """What keeps a conversation, so that a question is read without all that went before.

    On a GPU reading takes next to nothing, and steps that were recorded write faster.
    """
    from openglm.engine.engine import memory_of

    if model.network.device.type != "cpu":
        return None
    room = memory_of(model.network, [model.config.max_position_embeddings])
    return model.engine(memory_bytes=room)


def _converse(session: Session, is_terminal: bool) -> None:
    """Question after question until the input ends; an error ends it only where nobody types."""
    prompt = "\n> " if is_terminal else ""
    while not session.is_over:
        try:
            line = input(prompt)
        except EOFError:
            return
        except KeyboardInterrupt:
            _write(say("\n/exit or Ctrl-D ends the conversation", "\n/exit 或 Ctrl-D 结束对话"))
            continue
        try:
            session.take(line)
        except OpenGLMError as error:
            if not is_terminal:
                raise
            _write(f"{error}\n")


class Session:
    """A conversation with a model.

    Args:
        model: that chats.
        sampling: options of every answer.
        write: shows text.
        system: the system message, None for none.
        new_engine: makes one of the model, or None; see `LanguageModel.stream_chat`.
    """

    def __init__(
        self,
        model: LanguageModel,
        sampling: dict[str, Any],
        write: Write,
        system: str | None = None,
        new_engine: Callable[[], Engine | None] = lambda: None,
    ) -> None:
        self.model = model
        self.new_engine = new_engine
        self.engine = new_engine()
        self.sampling = sampling
        self.write = write
        self.system = system
        self.turns: list[Message] = []
        self.is_over = False
        self.commands: dict[str, tuple[str, Callable[[str], None]]] = {
            "/clear": (say("forget the conversation", "清空对话"), self._clear),
            "/system": (say("TEXT: set the system message", "TEXT：设置系统提示词"), self._system),
            "/save": (say("FILE: write the conversation as JSON", "FILE：保存对话"), self._save),
            "/help": (say("this list", "显示帮助"), self._help),
            "/exit": (say("end", "结束"), self._exit),
        }

    def take(self, line: str) -> None:
        """Answers a question, or carries out a command.

        Raises:
            OpenGLMError: an unknown command, a file that cannot be written, or too long a
                conversation; nothing of it is lost.
        """
        line = line.strip()
        if line.startswith("/"):
            name, _, rest = line.partition(" ")
            if name not in self.commands:
                raise RequestError(f"unknown command {name}", hint=suggest(name, self.commands))
            self.commands[name][1](rest.strip())
        elif line:
            self._answer(line)

    def messages(self) -> list[Message]:
        """The conversation so far, with the system message."""
        from openglm.chat import Message

        before = [] if self.system is None else [Message("system", self.system)]
        return [*before, *self.turns]

    def _answer(self, question: str) -> None:
        """Streams the answer; one that was stopped stays as far as it was shown."""
        from openglm.chat import Message, read_reply

        asked = [*self.messages(), Message("user", question)]
        text = ""
        try:
            for piece in self.model.stream_chat(asked, engine=self.engine, **self.sampling):
                self.write(piece if text.strip() else piece.lstrip())
                text += piece
        except KeyboardInterrupt:
            self.engine = self.new_engine()  # a step was broken off: what it left is not known
            self.write(say(" [stopped]", " [已停止]"))
        self.write("\n")
        if not text.strip():  # stopped while the question was read, or nothing was said
            return
        reply = read_reply(self.model.tokenizer.kind, text, asked)
        self.turns += [asked[-1], *reply.messages]

    def _clear(self, rest: str) -> None:
        self.turns.clear()
        self.write(say("forgotten\n", "已清空\n"))

    def _system(self, rest: str) -> None:
        self.system = rest or None
        self.write(say("it counts from the next answer on\n", "从下一个回答起生效\n"))

    def _save(self, rest: str) -> None:
        if not rest:
            raise RequestError("/save needs a file name", hint="/save talk.json")
        content = [
            {"role": message.role, "content": message.content}
            | ({"metadata": message.metadata} if message.metadata else {})
            for message in self.messages()
        ]
        try:
            with Path(rest).open("x", encoding="utf-8") as file:
                json.dump(content, file, ensure_ascii=False, indent=2)
        except OSError as error:
            raise RequestError(f"{rest} cannot be written: {error.strerror}") from error
        self.write(say(f"{len(content)} messages in {rest}\n", f"已保存 {len(content)} 条\n"))

    def _help(self, rest: str) -> None:
        for name, (meaning, _) in self.commands.items():
            self.write(f"{name:<8} {meaning}\n")

    def _exit(self, rest: str) -> None:
        self.is_over = True


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _import_line_editing() -> None:
    """Arrow keys and history in `input`, where Python has them."""
    import contextlib

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401
