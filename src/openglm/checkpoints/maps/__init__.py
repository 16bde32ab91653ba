"""Name maps: one table per foreign layout, from which both directions are derived."""

from openglm.checkpoints.maps import chatglm, chatglm2, codegeex, glm, glm4, glm130b
from openglm.checkpoints.maps.family import Family
from openglm.checkpoints.maps.table import NameMap, Row

FAMILIES = (
    glm.FAMILY,
    glm130b.FAMILY,
    chatglm.FAMILY,
    glm4.FAMILY,
    chatglm2.FAMILY,
    codegeex.FAMILY,
)

__all__ = ["FAMILIES", "Family", "NameMap", "Row"]
