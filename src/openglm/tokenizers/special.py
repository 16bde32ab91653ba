"""Command tokens: the ids above (or inside) the text vocabulary that steer a GLM.

Each official tokenizer appends them in its own order; the tables below give the ids as an offset
from the size of the text vocabulary, or as the fixed id of a token that the vocabulary has itself.
Source of the orders: the tokenizer definitions of the GLM repository; the ids they lead to are
tested (BERT 30522, RoBERTa 50265, GPT-2 50257, Chinese sentencepiece 50000 text tokens).
"""

from __future__ import annotations

from dataclasses import dataclass

from openglm.errors import TokenizerError, suggest


@dataclass(frozen=True, slots=True)
class CommandToken:
    """One command token.

    Args:
        role: what it is for: `pad eos cls mask sep unk sop eop gmask smask dblock`, and for chat
            models `system user assistant observation`.
        text: how it is written.
        id: its id.
        lstrip: it swallows the white space on its left when found in text.
    """

    role: str
    text: str
    id: int
    lstrip: bool = False


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """The command tokens of one tokenizer, in matching order."""

    tokens: tuple[CommandToken, ...]

    def get(self, role: str) -> CommandToken:
        """The token with this role; `TokenizerError` if the tokenizer has none."""
        for token in self.tokens:
            if token.role == role:
                return token
        raise TokenizerError(
            f"this tokenizer has no {role} token",
            hint=f"it has: {', '.join(t.text for t in self.tokens)}",
        )

    def has(self, role: str) -> bool:
        """Whether there is a token with this role."""
        return any(token.role == role for token in self.tokens)

    @property
    def ids(self) -> frozenset[int]:
        """All command ids."""
        return frozenset(token.id for token in self.tokens)

    @property
    def texts(self) -> dict[int, str]:
        """Id -> text; of two tokens with one id the later one names it (GLM-10B-Chinese)."""
        return {token.id: token.text for token in self.tokens}

    @property
    def mask_tokens(self) -> tuple[CommandToken, ...]:
        """The tokens that stand for a blank."""
        return tuple(token for token in self.tokens if token.role in ("mask", "smask", "gmask"))

    @property
    def end_ids(self) -> frozenset[int]:
        """Ids that end a blank: `eop`, and `eos` for a continuation that ends the text."""
        return frozenset({self.eop_id, self.eos_id})

    @property
    def spoken_ids(self) -> frozenset[int]:
        """Command tokens that are part of an answer: ChatGLM3 starts a second turn with one."""
        return frozenset(token.id for token in self.tokens if token.role == "assistant")

    @property
    def pad_id(self) -> int:
        """Padding; equal to `eos` in every tokenizer of GLM itself."""
        return self.get("pad").id

    @property
    def eos_id(self) -> int:
        """End of a document."""
        return self.get("eos").id

    @property
    def cls_id(self) -> int:
        """First token of a document (`ENC`)."""
        return self.get("cls").id

    @property
    def sop_id(self) -> int:
        """Start of a blank's content."""
        return self.get("sop").id

    @property
    def eop_id(self) -> int:
        """End of a blank's content."""
        return self.get("eop").id

    @property
    def mask_id(self) -> int:
        """A short blank."""
        return self.get("mask").id

    @property
    def smask_id(self) -> int:
        """A sentence blank; models without task masks use `[MASK]` for it."""
        return self.get("smask" if self.has("smask") else "mask").id

    @property
    def gmask_id(self) -> int:
        """A long blank; models without task masks use `[MASK]` for it."""
        return self.get("gmask" if self.has("gmask") else "mask").id

    @property
    def dblock_id(self) -> int | None:
        """Hides an input token inside a blank; None where the tokenizer has none."""
        return self.get("dblock").id if self.has("dblock") else None


SOP, EOP = "<|startofpiece|>", "<|endofpiece|>"
EOD = "<|endoftext|>"


@dataclass(frozen=True, slots=True)
class Layout:
    """The command tokens of a tokenizer kind as rows (role, text, place, lstrip).

    `place` is an int for an id inside the text vocabulary, or a string "+n" for text size + n.
    """

    rows: tuple[tuple[str, str, int | str, bool], ...]

    def resolve(self, num_text_tokens: int) -> SpecialTokens:
        """The concrete ids for a vocabulary of `num_text_tokens`."""
        return SpecialTokens(
            tuple(
                CommandToken(
                    role,
                    text,
                    place if isinstance(place, int) else num_text_tokens + int(place),
                    strip,
                )
                for role, text, place, strip in self.rows
            )
        )


def _chatglm(mask: int, pad: int) -> tuple[tuple[str, str, int | str, bool], ...]:
    """Rows of ChatGLM-6B and GLM-130B from the ids of `[MASK]` and of `<pad>`."""
    return (
        ("pad", "<pad>", pad, False),
        ("eos", "</s>", pad - 1, False),
        ("mask", "[MASK]", mask, False),
        ("gmask", "[gMASK]", mask + 1, False),
        ("smask", "[sMASK]", mask + 2, False),
        ("eod", "<unused_0>", mask + 3, False),
        ("sop", "<sop>", mask + 4, False),
        ("eop", "<eop>", mask + 5, False),
        ("cls", "<ENC>", mask + 6, False),
        ("dblock", "<dBLOCK>", mask + 7, False),
    )


CHATGLM2: tuple[tuple[str, str, int | str, bool], ...] = (
    ("pad", "<unk>", 0, False),
    ("bos", "<s>", 1, False),
    ("eos", "</s>", 2, False),
    ("mask", "[MASK]", "+0", False),
    ("gmask", "[gMASK]", "+1", False),
    ("smask", "[sMASK]", "+2", False),
    ("sop", "sop", "+3", False),
    ("eop", "eop", "+4", False),
)

LAYOUTS: dict[str, Layout] = {
    "bert": Layout(
        (
            ("pad", "[PAD]", 0, False),
            ("eos", "[PAD]", 0, False),
            ("cls", "[CLS]", 101, False),
            ("mask", "[MASK]", 103, False),
            ("unk", "[UNK]", 100, False),
            ("sep", "[SEP]", 102, False),
            ("sop", SOP, "+0", False),
            ("eop", EOP, "+1", False),
        )
    ),
    "roberta": Layout(
        (
            ("pad", EOD, 2, False),
            ("eos", EOD, 2, False),
            ("sep", "</s>", 2, False),
            ("cls", "<s>", 0, False),
            ("mask", "<mask>", "-1", True),
            ("unk", "<unk>", 3, False),
            ("sop", SOP, "+0", False),
            ("eop", EOP, "+1", False),
            ("gmask", "[gMASK]", "+2", True),
            ("smask", "[sMASK]", "+3", True),
            ("dblock", "[dBLOCK]", "+4", False),
        )
    ),
    "gpt2": Layout(
        (
            ("pad", EOD, "-1", False),
            ("eos", EOD, "-1", False),
            ("sop", SOP, "+0", False),
            ("eop", EOP, "+1", False),
            ("cls", "[CLS]", "+2", False),
            ("mask", "[MASK]", "+3", True),
            ("sep", "[SEP]", "+4", False),
            ("unk", "[UNK]", "+5", False),
            ("gmask", "[gMASK]", "+6", True),
            ("smask", "[sMASK]", "+7", True),
            ("dblock", "[dBLOCK]", "+8", False),
        )
    ),
    "chinese": Layout(
        (
            ("pad", EOD, "+0", False),
            ("eos", EOD, "+0", False),
            ("sep", "[SEP]", "+1", False),
            ("cls", "[CLS]", "+2", False),
            ("mask", "[MASK]", "+3", True),
            ("unk", "[UNK]", "+4", False),
            ("sop", SOP, "+6", False),
            ("eop", EOP, "+7", False),
            ("smask", "[sMASK]", "+8", True),
            ("gmask", "[gMASK]", "+9", True),
            ("dblock", "[dBLOCK]", "+10", False),
        )
    ),
    # GLM-10B-Chinese in the Megatron code: [gMASK] has the id of <|endofpiece|>.
    "chinese-unfixed": Layout(
        (
            ("pad", EOD, "+0", False),
            ("eos", EOD, "+0", False),
            ("sep", "[SEP]", "+1", False),
            ("cls", "[CLS]", "+2", False),
            ("mask", "[MASK]", "+3", True),
            ("unk", "[UNK]", "+4", False),
            ("sop", SOP, "+6", False),
            ("eop", EOP, "+7", False),
            ("gmask", "[gMASK]", "+7", True),
            ("smask", "[sMASK]", "+8", True),
            ("dblock", "[dBLOCK]", "+9", False),
        )
    ),
    "chatglm": Layout(_chatglm(130000, 3)),
    "chatglm-icetk": Layout(_chatglm(150000, 20003)),
    "icetk": Layout(_chatglm(150000, 20003)),
    "chatglm2": Layout(CHATGLM2),
    "chatglm3": Layout(
        (
            *CHATGLM2,
            ("system", "<|system|>", "+5", False),
            ("user", "<|user|>", "+6", False),
            ("assistant", "<|assistant|>", "+7", False),
            ("observation", "<|observation|>", "+8", False),
        )
    ),
    "codegeex2": Layout(CHATGLM2),
    "glm4": Layout(
        (
            ("pad", EOD, "+0", False),
            ("eos", EOD, "+0", False),
            ("mask", "[MASK]", "+1", False),
            ("gmask", "[gMASK]", "+2", False),
            ("smask", "[sMASK]", "+3", False),
            ("sop", "<sop>", "+4", False),
            ("eop", "<eop>", "+5", False),
            ("system", "<|system|>", "+6", False),
            ("user", "<|user|>", "+7", False),
            ("assistant", "<|assistant|>", "+8", False),
            ("observation", "<|observation|>", "+9", False),
            ("begin_of_image", "<|begin_of_image|>", "+10", False),
            ("end_of_image", "<|end_of_image|>", "+11", False),
            ("begin_of_video", "<|begin_of_video|>", "+12", False),
            ("end_of_video", "<|end_of_video|>", "+13", False),
        )
    ),
    "codegeex": Layout(
        (
            ("pad", EOD, "-1", False),
            ("eos", EOD, "-1", False),
            *((f"extra_{n}", f"<|extratoken_{n}|>", f"+{n - 1}", False) for n in range(1, 144)),
        )
    ),
    "mini": Layout(
        (
            ("pad", EOD, "+0", False),
            ("eos", EOD, "+0", False),
            ("sop", SOP, "+1", False),
            ("eop", EOP, "+2", False),
            ("cls", "[CLS]", "+3", False),
            ("mask", "[MASK]", "+4", True),
            ("sep", "[SEP]", "+5", False),
            ("unk", "[UNK]", "+6", False),
            ("gmask", "[gMASK]", "+7", True),
            ("smask", "[sMASK]", "+8", True),
            ("dblock", "[dBLOCK]", "+9", False),
        )
    ),
}


def layout(kind: str) -> Layout:
    """The layout of a tokenizer kind; `TokenizerError` for an unknown one."""
    if not isinstance(kind, str) or kind not in LAYOUTS:
        raise TokenizerError(f"unknown tokenizer kind {kind!r}", hint=suggest(str(kind), LAYOUTS))
    return LAYOUTS[kind]
