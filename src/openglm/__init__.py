"""openglm: run and train the GLM family from one small package.

    import openglm
    model = openglm.load("mini")
    print(model.fill("Tom is a very good [MASK].").text)

Importing this module does not import torch; `load` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openglm.config import ModelConfig
    from openglm.engine.params import SamplingParams
    from openglm.errors import OpenGLMError
    from openglm.language_model import LanguageModel
    from openglm.loading import load

__version__ = "0.1.0"
__all__ = [
    "LanguageModel",
    "ModelConfig",
    "OpenGLMError",
    "SamplingParams",
    "__version__",
    "load",
]

_LAZY = {
    "LanguageModel": "openglm.language_model",
    "ModelConfig": "openglm.config",
    "OpenGLMError": "openglm.errors",
    "SamplingParams": "openglm.engine.params",
    "load": "openglm.loading",
}


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'openglm' has no attribute {name!r}")
