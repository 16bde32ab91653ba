"""Claim: `import openglm` and `glm --help` take less than 0.3 s."""

import subprocess
import sys
from typing import Any

from benchmarks.record import seconds, spread

COMMANDS = {
    "python -c pass": "pass",
    "import openglm": "import openglm",
    "glm --help": "from openglm.cli.main import _run; _run(['--help'], False)",
}


def measure() -> dict[str, Any]:
    """Wall time of whole processes."""
    found = {}
    for name, code in COMMANDS.items():

        def work(code: str = code) -> None:
            subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)

        found[name] = spread(seconds(work, 15, 2))
    return {"unit": "seconds", "wall_s": found}
