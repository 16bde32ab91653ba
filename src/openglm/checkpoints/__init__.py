"""Official and own checkpoints: recognise, read, check, write."""

from openglm.checkpoints.load import Loaded, load_checkpoint
from openglm.checkpoints.save import save_checkpoint

__all__ = ["Loaded", "load_checkpoint", "save_checkpoint"]
