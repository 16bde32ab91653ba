"""The network and its construction from a `ModelConfig`."""

from openglm.model.build import build, initialize
from openglm.model.transformer import Transformer

__all__ = ["Transformer", "build", "initialize"]
