"""Code with a gap is written down as models were trained to read it."""

from __future__ import annotations

import pytest

from openglm.errors import RequestError
from openglm.serve.bigmodel.code import Extra
from openglm.serve.infilling import Gap

TARGET = {"language": "python", "code_prefix": "a = ", "code_suffix": "\nprint(a)"}
FILES = [{"path": "b.py", "code": "b = 1"}, {"path": "c.py", "code": "c = 2"}]
LAYOUT = "<|code_suffix|>\nprint(a)<|code_prefix|>a = <|code_middle|>"


def gap(files=None, **more):
    """What BigModel's clients send."""
    return Extra(target=TARGET | more, contexts=files).gap()


def test_the_layout_of_codegeex4():
    """CodeGeeX4 reads a layout that it was not trained on."""
    assert gap().message() == f"###PATH:\n###LANGUAGE:Python\n###MODE:BLOCK\n{LAYOUT}"
    assert gap(FILES, path="a.py").message() == (
        "###REFERENCE:\n###PATH:b.py\nb = 1\n###REFERENCE:\n###PATH:c.py\nc = 2\n"
        f"###PATH:a.py\n###LANGUAGE:Python\n###MODE:BLOCK\n{LAYOUT}"
    )
    alone = Gap("a = ", "\nprint(a)")  # OpenAI's clients name neither
    assert alone.message() == f"###PATH:\n###LANGUAGE:\n###MODE:BLOCK\n{LAYOUT}"


@pytest.mark.parametrize(
    ("sent", "spelled"),
    [("python", "Python"), ("Python", "Python"), ("JS", "JavaScript"), ("cpp", "C++"), ("", "")],
)
def test_names_of_languages(sent, spelled):
    """A language has a name that the model does not know."""
    assert gap(language=sent).language == spelled


def test_a_text_with_a_blank():
    """A model that fills blanks does not see all that was sent, or sees more, or more blanks."""
    found = gap(FILES[:1], path="a.py").text("[MASK]")
    assert found == ("# path: b.py\nb = 1\n# language: Python\n# path: a.py\na = [MASK]\nprint(a)")
    assert Gap("The cat ", " sat.").text("[MASK]") == "The cat [MASK] sat."
    for where in ("code_prefix", "code_suffix"):
        with pytest.raises(RequestError, match="blanks of its own"):
            gap(**{where: "x = '[gMASK]'"}).text("[MASK]")
