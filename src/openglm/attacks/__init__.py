"""Attacks that a server must withstand: a table of them, to be run against one's own server.

They reach it as a stranger does, through its address, with one ordinary key. `glm attack` runs it.
"""

from openglm.attacks.attack import Attack, Verdict, launch
from openglm.attacks.table import ATTACKS, OMITTED, choose
from openglm.attacks.target import FULL, QUICK, Target

__all__ = ["ATTACKS", "FULL", "OMITTED", "QUICK", "Attack", "Target", "Verdict", "choose", "launch"]
