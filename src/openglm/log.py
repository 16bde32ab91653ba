"""The package logger. Library code logs; only the command line prints."""

from __future__ import annotations

import logging

logger = logging.getLogger("openglm")
logger.addHandler(logging.NullHandler())
