"""Claim: training `mini` is at least 1.5 x as fast as the same shape in transformers (GPT-2).

Both process the same batches (ids, targets, positions of the real objective) with the same AdamW,
in the same process, in turns. The peer is GPT2LMHeadModel in float32 with its defaults; it
computes logits for every token, as its API does. Ours in float32 is the like-for-like figure, ours
in bf16 is what the recipe of mini runs.
"""

from contextlib import nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from benchmarks.record import spread
from openglm.data.batches import Batch, BatchStream
from openglm.data.objectives import BlankInfilling
from openglm.data.packing import Packer
from openglm.data.token_store import write_store
from openglm.model import build, initialize
from openglm.settings import parse, read_toml
from openglm.tokenizers.special import LAYOUTS
from openglm.train.allocator import keep_freed_memory
from openglm.train.config import RunConfig
from openglm.train.loss import blank_loss
from openglm.train.optimizer import build_optimizer

RECIPE = Path(__file__).parents[1] / "recipes" / "mini" / "pretrain.toml"
ROUNDS = 12


def measure() -> dict[str, Any]:
    """Tokens/s of both, over the same batches, interleaved."""
    import tempfile

    from transformers import GPT2Config, GPT2LMHeadModel

    config = parse(RunConfig, read_toml(RECIPE))
    with tempfile.TemporaryDirectory() as folder:
        stream = _stream(config, Path(folder))
        batches = [stream(index) for index in range(ROUNDS + 1)]
    model = config.model
    peer = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=model.vocab_size,
            n_positions=640,
            n_embd=model.hidden_size,
            n_layer=model.num_layers,
            n_head=model.num_attention_heads,
            n_inner=model.intermediate_size,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    ).train()
    ours = build(model, "cpu")
    initialize(ours, 0)
    ours.train()
    peer_optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-4)
    our_optimizer = build_optimizer(ours, config.optimizer)

    def peer_step(batch: Batch) -> None:
        ids = torch.from_numpy(batch.input_ids)
        logits = peer(input_ids=ids).logits
        scored = torch.from_numpy(batch.loss_mask.astype(bool))
        targets = torch.from_numpy(batch.targets)[scored]
        torch.nn.functional.cross_entropy(logits[scored], targets).backward()
        peer_optimizer.step()
        peer_optimizer.zero_grad(set_to_none=True)

    def our_step(batch: Batch, bf16: bool) -> None:
        with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
            loss = blank_loss(ours, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        our_optimizer.step()
        our_optimizer.zero_grad(set_to_none=True)

    keep_freed_memory()  # for both: the peer gains from it as well
    steps = {
        "transformers GPT-2, float32": peer_step,
        "openglm, float32": lambda batch: our_step(batch, False),
        "openglm, bfloat16": lambda batch: our_step(batch, True),
    }
    rates: dict[str, list[float]] = {name: [] for name in steps}
    for index, batch in enumerate(batches):
        for name, step in steps.items():
            start = perf_counter()
            step(batch)
            if index:  # the first round warms up
                rates[name].append(batch.num_tokens / (perf_counter() - start))
    found = {name: spread(values) for name, values in rates.items()}
    base = found["transformers GPT-2, float32"]["median"]
    return {
        "unit": "training tokens/s, forward + backward + AdamW",
        "parameters": {
            "openglm": model.num_parameters,
            "peer": sum(p.numel() for p in peer.parameters()),
        },
        "batch": {"sequences": config.train.batch_size, "tokens": batches[1].num_tokens},
        "tokens_per_s": found,
        "ratio_to_peer": {name: value["median"] / base for name, value in found.items()},
    }


def _stream(config: RunConfig, folder: Path) -> BatchStream:
    """Batches of the recipe's shape over random documents."""
    rng = np.random.default_rng(0)
    special = LAYOUTS["mini"].resolve(config.model.vocab_size - 10)
    documents = [rng.integers(0, 12_000, rng.integers(20, 400)).tolist() for _ in range(500)]
    ends = rng.random(config.model.vocab_size) < 0.05
    packer = Packer.build(
        [write_store(folder / "store", documents, config.model.vocab_size)],
        [1.0],
        config.train.sequence_length,
        special.cls_id,
        special.eos_id,
        ends,
    )
    objective = BlankInfilling(
        config.objective, special, ends, config.model.max_position_embeddings
    )
    return BatchStream(packer, objective, config.train.batch_size, seed=0)
