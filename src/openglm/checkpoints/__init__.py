"""Official and own checkpoints: recognise, read, check, write."""

from openglm.checkpoints.gguf import export_gguf
from openglm.checkpoints.load import Loaded, load_checkpoint, load_random, load_source
from openglm.checkpoints.save import save_checkpoint
from openglm.checkpoints.source import Source, describe_checkpoint, open_checkpoint

__all__ = [
    "Loaded",
    "Source",
    "describe_checkpoint",
    "export_gguf",
    "load_checkpoint",
    "load_random",
    "load_source",
    "open_checkpoint",
    "save_checkpoint",
]
