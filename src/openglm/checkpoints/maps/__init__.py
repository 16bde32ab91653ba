"""Name maps: one table per foreign layout, from which both directions are derived."""

from openglm.checkpoints.maps.table import NameMap, Row

__all__ = ["NameMap", "Row"]
