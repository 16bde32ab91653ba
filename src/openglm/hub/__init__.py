"""Fetching published checkpoints: `glm download`. No torch.

target.py       what a name means: which repository, which folder, which licence
listing.py      what a hub says of a repository; the protocol of a hub
hubs.py         the two hubs by name: huggingface.py, modelscope.py
choose.py       the files that are needed, of those that are there
network.py      one client, errors in words, retries
transfer.py     one file over HTTP, continued at the byte
local.py        the same files from a folder
store.py        the folder of a model: lock, record, digests, atomic finish
assemble.py     filling that folder
download.py     the steps in their order
"""

from openglm.hub.assemble import Plan, Report, Watcher
from openglm.hub.download import download, import_folder
from openglm.hub.hubs import open_hub
from openglm.hub.listing import Hub
from openglm.hub.target import Target, find_target

__all__ = [
    "Hub",
    "Plan",
    "Report",
    "Target",
    "Watcher",
    "download",
    "find_target",
    "import_folder",
    "open_hub",
]
