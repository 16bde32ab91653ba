"""Official and own checkpoints: recognise, read, check, write."""

from openglm.checkpoints.load import Loaded, describe_checkpoint, load_checkpoint
from openglm.checkpoints.save import save_checkpoint

__all__ = ["Loaded", "describe_checkpoint", "load_checkpoint", "save_checkpoint"]
