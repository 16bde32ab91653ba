"""Code with a gap is written down as models were trained to read it."""

from __future__ import annotations

import pytest

from openglm.errors import RequestError
from openglm.serve.bigmodel.code import Extra

TARGET = {"language": "python", "code_prefix": "a = ", "code_suffix": "\nprint(a)"}
FILES = [{"path": "b.py", "code": "b = 1"}, {"path": "c.py", "code": "c = 2"}]


def test_the_layout_of_codegeex4():
    """CodeGeeX4 reads a layout that it was not trained on."""
    gap = "<|code_suffix|>\nprint(a)<|code_prefix|>a = <|code_middle|>"
    alone = Extra(target=TARGET)
    assert alone.message() == f"###PATH:\n###LANGUAGE:Python\n###MODE:BLOCK\n{gap}"
    among = Extra(target=TARGET | {"path": "a.py"}, contexts=FILES)
    assert among.message() == (
        "###REFERENCE:\n###PATH:b.py\nb = 1\n###REFERENCE:\n###PATH:c.py\nc = 2\n"
        f"###PATH:a.py\n###LANGUAGE:Python\n###MODE:BLOCK\n{gap}"
    )


@pytest.mark.parametrize(
    ("sent", "spelled"),
    [("python", "Python"), ("Python", "Python"), ("JS", "JavaScript"), ("cpp", "C++"), ("", "")],
)
def test_names_of_languages(sent, spelled):
    """A language has a name that the model does not know."""
    assert Extra(target=TARGET | {"language": sent}).target.spelled == spelled


def test_a_text_with_a_blank():
    """A model that fills blanks does not see all that was sent, or sees more blanks."""
    found = Extra(target=TARGET | {"path": "a.py"}, contexts=FILES[:1]).text("[MASK]")
    assert found == ("# path: b.py\nb = 1\n# language: Python\n# path: a.py\na = [MASK]\nprint(a)")
    for where in ("code_prefix", "code_suffix"):
        with pytest.raises(RequestError, match="blanks of its own"):
            Extra(target=TARGET | {where: "x = '[gMASK]'"}).text("[MASK]")
