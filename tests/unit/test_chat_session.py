"""The conversation of `glm chat` with a scripted model."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from openglm.cli.chat import Session, _converse
from openglm.errors import OpenGLMError


class Model:
    """Answers with the next line of a script and remembers what it was asked."""

    tokenizer = SimpleNamespace(kind="chatglm3")

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []
        self.engines = []

    def stream_chat(self, messages, engine, **sampling):
        self.asked.append([(m.role, m.content) for m in messages])
        self.engines.append(engine)
        for piece in self.answers.pop(0):
            if piece is KeyboardInterrupt:
                raise KeyboardInterrupt
            yield piece


def start(*answers, system=None):
    shown = []
    model = Model(*answers)
    return Session(model, {}, shown.append, system), model, shown


def test_the_model_remembers():
    """The second question is asked without the first, or without the system message."""
    session, model, shown = start(["\n ", "one"], ["\n two"], system="be brief")
    session.take("first")
    session.take("second")
    assert model.asked[1] == [
        ("system", "be brief"),
        ("user", "first"),
        ("assistant", "one"),
        ("user", "second"),
    ]
    assert "".join(shown) == "one\ntwo\n"


def test_a_stopped_answer_stays():
    """Ctrl-C loses the conversation, or the part of the answer that was read."""
    session, model, shown = start(["half", KeyboardInterrupt], ["rest"])
    session.take("q")
    session.take("go on")
    assert model.asked[1][:2] == [("user", "q"), ("assistant", "half")]
    assert "stopped" in "".join(shown)


def test_a_stopped_step_ends_its_engine():
    """The next answer comes from an engine that was left in the middle of a step."""
    engines = []
    model = Model(["half", KeyboardInterrupt], ["rest"])

    def new_engine():
        engines.append(object())
        return engines[-1]

    session = Session(model, {}, lambda text: None, new_engine=new_engine)
    session.take("q")
    session.take("go on")
    assert model.engines == engines
    assert len(engines) == 2


def test_commands(tmp_path):
    """/clear, /system, /save and /exit do something else than they say."""
    session, model, _ = start(["one"], ["two"])
    session.take("q")
    session.take(f"/save {tmp_path / 'talk.json'}")
    saved = json.loads((tmp_path / "talk.json").read_text("utf-8"))
    assert saved == [{"role": "user", "content": "q"}, {"role": "assistant", "content": "one"}]
    with pytest.raises(OpenGLMError, match="cannot be written"):
        session.take(f"/save {tmp_path / 'talk.json'}")
    session.take("/system 用中文")
    session.take("/clear")
    session.take("again")
    assert model.asked[1] == [("system", "用中文"), ("user", "again")]
    session.take("/exit")
    assert session.is_over


def test_unknown_commands_are_named():
    """A mistyped command is sent to the model as a question."""
    session, model, _ = start()
    with pytest.raises(OpenGLMError, match=r"unknown command /clera.*/clear"):
        session.take("/clera")
    with pytest.raises(OpenGLMError, match="/save needs a file name"):
        session.take("/save")
    session.take("   ")
    assert not model.asked


def test_errors_do_not_end_the_conversation(monkeypatch, capsys):
    """One wrong command, and an hour of talk is gone."""
    session, model, shown = start(["one"])
    lines = iter(["/nonsense", "q"])

    def read(prompt):
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    _converse(session, True)
    assert "unknown command /nonsense" in capsys.readouterr().out
    assert "".join(shown) == "one\n"
    assert model.asked == [[("user", "q")]]


def test_a_question_that_was_stopped_while_it_was_read():
    """Ctrl-C in the longest phase on a CPU ends the program, and the conversation with it."""
    session, model, _ = start([KeyboardInterrupt], ["two"])
    session.take("long question")
    session.take("short")
    assert model.asked[1] == [("user", "short")]


def test_piped_questions_end_with_the_error(monkeypatch):
    """A script goes on after a failure, and finds the message among the answers."""
    session, _, _ = start()
    monkeypatch.setattr("builtins.input", lambda prompt: "/nonsense")
    with pytest.raises(OpenGLMError, match="unknown command"):
        _converse(session, False)
