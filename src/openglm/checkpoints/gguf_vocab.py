"""The tokenizers of ChatGLM2, ChatGLM3, CodeGeeX2 and GLM-4 as llama.cpp wants them in GGUF.

Ids stay what they are. A prompt is written with its command tokens as text, `[gMASK]<sop>` first:
llama.cpp puts at most one token in front by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from openglm.chat.jinja import JINJA
from openglm.errors import TokenizerError
from openglm.log import logger
from openglm.tokenizers import Tokenizer
from openglm.tokenizers.bpe import byte_characters
from openglm.tokenizers.chatglm2 import ChatGLM2Tokenizer
from openglm.tokenizers.glm4 import GLM4Tokenizer

if TYPE_CHECKING:
    from gguf import GGUFWriter

NORMAL, UNKNOWN, CONTROL, UNUSED, BYTE = 1, 2, 3, 5, 6
"""Types of tokens: `llama_token_type` of llama.cpp, the same numbers as in sentencepiece."""
ENDS = {"eos": "eos", "user": "eot", "observation": "eom"}
"""Role of a token that ends an answer -> what llama.cpp calls such an end."""


def add_vocabulary(writer: GGUFWriter, tokenizer: Tokenizer | None, size: int) -> None:
    """Adds a tokenizer to a file; without one, "no_vocab", with which only ids go in and out.

    Args:
        writer: of the file.
        tokenizer: of a model that llama.cpp can run.
        size: rows of the embedding; those above the tokenizer's ids get unused tokens.

    Raises:
        TokenizerError: of another kind, or with more ids than `size`.
    """
    if tokenizer is None:
        logger.warning("there is no tokenizer, so the file works with token ids only")
        writer.add_tokenizer_model("no_vocab")
        return
    if tokenizer.kind not in WRITERS:
        raise TokenizerError(
            f"llama.cpp has no tokenizer of the kind {tokenizer.kind}",
            hint=f"it has {', '.join(WRITERS)}",
        )
    if tokenizer.vocab_size > size:
        raise TokenizerError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the network only {size}",
            hint="it belongs to another model",
        )
    tokens, types = WRITERS[tokenizer.kind](writer, tokenizer, size)
    above = range(len(tokens), size)
    named = {i: spelled(text) for i, text in tokenizer.special.texts.items() if i in above}
    tokens += [named.get(i, f"[PAD{i}]") for i in above]
    types += [CONTROL if i in named else UNUSED for i in above]
    twice = len(tokens) - len(set(tokens))
    if twice:
        raise TokenizerError(f"{twice} tokens of the vocabulary are written as another one is")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    for role, end in ENDS.items():
        if tokenizer.special.has(role):
            getattr(writer, f"add_{end}_token_id")(tokenizer.special.get(role).id)
    writer.add_pad_token_id(tokenizer.special.pad_id)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    if tokenizer.kind in JINJA:
        writer.add_chat_template(JINJA[tokenizer.kind])


def spelled(text: str) -> str:
    """How a command token is written: `sop` of ChatGLM2 becomes `<sop>`, as in GLM-4.

    llama.cpp takes command tokens out of chat messages wherever it finds them; `eop` is in "people"
    and `sop` in "philosophy".
    """
    return f"<{text}>" if text.isalpha() else text


def merges(ranks: dict[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """Every pair of tokens that makes a token, by the rank of what it makes.

    By ranks, any two neighbours whose union is a token are joined; so all halves of a token are
    needed, not just the pair from which it was trained.

    Args:
        ranks: token -> rank, in the order of ranks.
    """
    for token in ranks:
        for cut in range(1, len(token)):
            if token[:cut] in ranks and token[cut:] in ranks:
                yield token[:cut], token[cut:]


def _sentencepiece(
    writer: GGUFWriter, tokenizer: ChatGLM2Tokenizer, size: int
) -> tuple[list[str], list[int]]:
    model, ids = tokenizer.model, range(tokenizer.num_text_tokens)
    scores = [float(model.get_score(i)) for i in ids]
    writer.add_tokenizer_model("llama")
    writer.add_token_scores(scores + [0.0] * (size - len(scores)))
    writer.add_add_space_prefix(tokenizer.adds_space)
    writer.add_unk_token_id(int(model.unk_id()))

    def kind(token_id: int) -> int:
        if model.is_byte(token_id):
            return BYTE
        if model.is_control(token_id):
            return CONTROL
        return UNKNOWN if model.is_unknown(token_id) else NORMAL

    return [model.id_to_piece(i) for i in ids], [kind(i) for i in ids]


def _ranks(writer: GGUFWriter, tokenizer: GLM4Tokenizer, size: int) -> tuple[list[str], list[int]]:
    character_of = byte_characters()

    def written(token: bytes) -> str:
        return "".join(character_of[byte] for byte in token)

    writer.add_tokenizer_model("gpt2")
    # Its splitting is ours, and like ranks it takes a word that is a token whole.
    writer.add_tokenizer_pre("glm4")
    writer.add_token_merges([f"{written(a)} {written(b)}" for a, b in merges(tokenizer.ranks)])
    return [written(token) for token in tokenizer.bytes_of], [NORMAL] * tokenizer.num_text_tokens


WRITERS: dict[str, Callable[..., tuple[list[str], list[int]]]] = {
    "chatglm2": _sentencepiece,
    "chatglm3": _sentencepiece,
    "codegeex2": _sentencepiece,
    "glm4": _ranks,
}
"""By kind of tokenizer: adds what only this kind has, gives tokens and types of the text ids."""
