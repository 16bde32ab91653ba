"""`glm quantize`: from any checkpoint to a quantized openglm folder, and a report on it."""

from openglm.quantize.passages import HELD_OUT
from openglm.quantize.run import Job, quantize

__all__ = ["HELD_OUT", "Job", "quantize"]
