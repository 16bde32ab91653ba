"""The old model types for transformers: one import, and scripts for `THUDM/chatglm*-6b` run again.

    import openglm.hf
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True)
    model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True).float()
    response, history = model.chat(tokenizer, "你好", history=[])

Importing this module registers the classes with transformers' `Auto` classes. The code in FOLDER is
never run, `trust_remote_code=True` or not.
"""

from __future__ import annotations

from openglm.errors import UsageError

try:
    import transformers as _transformers  # noqa: F401
except ImportError as error:
    raise UsageError(
        "openglm.hf needs transformers, which is not installed",
        hint="pip install '.[hf]'",
    ) from error

from openglm.hf.registration import register

__all__ = ["register"]

register()
