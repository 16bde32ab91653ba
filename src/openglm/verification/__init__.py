"""Comparing a model with recorded outputs of the official code (`glm verify`).

A golden is an .npz whose array names say what it holds; each kind of recording has a file here.
"""

from openglm.verification.compare import Comparison, compare_golden
from openglm.verification.meta import recorded_description

__all__ = ["Comparison", "compare_golden", "recorded_description"]
