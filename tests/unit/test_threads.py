"""Who computes: one pool of threads that stays, and torch's own threads at rest.

Time on processors is counted, not on the clock, so that other work on the machine does not matter.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from openglm.kernels.cpu import module

TASKS = Path("/proc/self/task")
NUM_THREADS = 3
STEPS = 50
SCRIPT = """
import dataclasses, json, sys, threading
from pathlib import Path

import torch

from openglm.checkpoints import load_random
from openglm.compiled.transform import compiled
from openglm.engine.engine import Engine
from openglm.engine.params import SamplingParams
from openglm.engine.prompt import causal_prompt
from openglm.kernels.cpu import module
from openglm.registry import preset
from openglm.scheme import find_scheme

def used():
    tasks = Path("/proc/self/task").iterdir()
    return {task.name: int((task / "schedstat").read_text().split()[0]) for task in tasks}

steps = int(sys.argv[1])
torch.set_num_threads(int(sys.argv[2]))
x = torch.ones(1024, 1024)
x @ x
before = used()
sizes = {"num_layers": 2, "hidden_size": 1024, "intermediate_size": 2752, "vocab_size": 4096}
config = dataclasses.replace(preset("chatglm2-6b").model, num_attention_heads=8, **sizes)
scheme = find_scheme("int4-g128+embeddings+head")
network = compiled(load_random(config, torch.bfloat16, "cpu", scheme))
engine = Engine(network, memory_bytes=1 << 24)
params = SamplingParams(max_tokens=2 * steps, temperature=1.0, seed=0)
request = engine.add(causal_prompt(list(range(40)), frozenset()), params)
while len(request.steps) < 5:
    engine.step()
start = used()
for _ in range(steps):
    engine.step()
end = used()
print(json.dumps({
    "caller": str(threading.get_native_id()),
    "num_threads": [torch.get_num_threads(), module().num_threads()],
    "torch": sorted(before),
    "start": sorted(start),
    "used": {name: end[name] - start.get(name, 0) for name in end},
}))
"""


@pytest.mark.skipif(module() is None, reason="the kernels are not compiled here")
@pytest.mark.skipif(
    not all((task / "schedstat").is_file() for task in TASKS.glob("*")) or not TASKS.is_dir(),
    reason="this system does not count the time of threads",
)
def test_torch_rests_while_a_packed_network_decodes():
    """Two pools wait for each other's cores, or every step makes new threads."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(STEPS), str(NUM_THREADS)],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["num_threads"] == [NUM_THREADS, NUM_THREADS]
    caller, used = found["caller"], found["used"]
    theirs = set(found["torch"]) - {caller}
    pool = set(found["start"]) - set(found["torch"])
    assert len(theirs) >= NUM_THREADS - 1  # or there is nobody to compete with
    assert len(pool) == NUM_THREADS - 1
    assert sorted(used) == found["start"]  # nobody came or went
    total = sum(used.values())
    assert sum(used[name] for name in theirs) < 0.02 * total
    assert sum(used[name] for name in pool) > 0  # the work is shared out
