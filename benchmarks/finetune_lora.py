"""Claim: LoRA fine-tuning is at least 1.3 x as fast as transformers with peft on the same shapes.

The proportions and vocabulary of ChatGLM2-6B, 8 layers of 1,024; random weights, and conversations
of 32 to 256 random tokens, whose last half is the answer. Both process the same padded batches in
float32 with the same AdamW, in the same process, in turns. The peer is stock `GlmForCausalLM` under
peft's LoRA (rank 8 on queries, keys and values) with its own loss, which computes logits for every
token, as its API does.
"""

from time import perf_counter
from typing import Any

import numpy as np
import torch

from benchmarks.record import spread
from openglm.adapters.lora import LoraConfig, add_lora
from openglm.config import ModelConfig
from openglm.data.batches import Batch, collate
from openglm.data.blank_infilling import Example
from openglm.model import build, initialize
from openglm.train.allocator import keep_freed_memory
from openglm.train.config import OptimizerConfig
from openglm.train.loss import blank_loss
from openglm.train.optimizer import build_optimizer

SHAPE = {
    "vocab_size": 65_024,
    "hidden_size": 1024,
    "num_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "intermediate_size": 3424,
    "max_position_embeddings": 512,
}
RANK, ALPHA, RATE = 8, 32, 1e-3
BATCH, SHORTEST, LONGEST, ROUNDS = 4, 32, 256, 9
IGNORED = -100
"""transformers' label of tokens that are not learned."""


def measure() -> dict[str, Any]:
    """Tokens/s of both, over the same batches, interleaved."""
    keep_freed_memory()  # for both: the peer gains from it as well
    ours, peer = _ours(), _peer()
    our_optimizer = build_optimizer(ours, OptimizerConfig(learning_rate=RATE, weight_decay=0.0))
    trained = [parameter for parameter in peer.parameters() if parameter.requires_grad]
    peer_optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)

    def our_step(batch: Batch) -> None:
        blank_loss(ours, batch).backward()  # type: ignore[no-untyped-call]
        our_optimizer.step()
        our_optimizer.zero_grad(set_to_none=True)

    def peer_step(batch: Batch) -> None:
        ids = torch.from_numpy(batch.input_ids)
        targets = np.where(batch.loss_mask == 1, batch.targets, IGNORED)
        labels = torch.from_numpy(np.roll(targets, 1, axis=1))  # it shifts them itself
        labels[:, 0] = IGNORED
        peer(input_ids=ids, labels=labels, use_cache=False).loss.backward()
        peer_optimizer.step()
        peer_optimizer.zero_grad(set_to_none=True)

    steps = {"openglm": our_step, "transformers + peft": peer_step}
    rates: dict[str, list[float]] = {name: [] for name in steps}
    rng = np.random.default_rng(0)
    for index in range(1 + ROUNDS):
        batch = _batch(rng)
        for name, step in steps.items():
            start = perf_counter()
            step(batch)
            if index:  # the first round warms up
                rates[name].append(batch.num_tokens / (perf_counter() - start))
    own, other = (rates[name] for name in steps)
    return {
        "unit": "training tokens/s, forward + backward + AdamW, float32",
        "shape": SHAPE,
        "trained_parameters": {
            "openglm": sum(p.numel() for p in ours.parameters() if p.requires_grad),
            "transformers + peft": sum(p.numel() for p in trained),
        },
        "tokens_per_s": {name: spread(values) for name, values in rates.items()},
        "ratio": spread([a / b for a, b in zip(own, other, strict=True)]),
    }


def _ours() -> Any:
    config = ModelConfig(
        **SHAPE,
        position="rotary",
        norm="rmsnorm",
        activation="swiglu",
        rotary_dim=32,
        rotary_pairing="interleaved",
        linear_bias=False,
        tie_word_embeddings=False,
        embedding_dropout=0.0,
        attention_dropout=0.0,
        hidden_dropout=0.0,
    )
    model = build(config, "cpu")
    initialize(model, 0)
    add_lora(model, LoraConfig(rank=RANK, alpha=ALPHA, dropout=0.0), seed=0)
    return model.train()


def _peer() -> Any:
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model
    from transformers import GlmConfig, GlmForCausalLM

    config = GlmConfig(
        vocab_size=SHAPE["vocab_size"],
        hidden_size=SHAPE["hidden_size"],
        intermediate_size=SHAPE["intermediate_size"],
        num_hidden_layers=SHAPE["num_layers"],
        num_attention_heads=SHAPE["num_attention_heads"],
        num_key_value_heads=SHAPE["num_key_value_heads"],
        head_dim=SHAPE["hidden_size"] // SHAPE["num_attention_heads"],
        attention_bias=True,
        max_position_embeddings=SHAPE["max_position_embeddings"],
        tie_word_embeddings=False,
        pad_token_id=0,
    )
    targets = ["q_proj", "k_proj", "v_proj"]
    lora = PeftConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, task_type="CAUSAL_LM")
    return get_peft_model(GlmForCausalLM(config), lora).train()


def _batch(rng: np.random.Generator) -> Batch:
    """Causal examples of random lengths; the second half of each is learned."""
    examples = []
    for length in rng.integers(SHORTEST, LONGEST, BATCH).tolist():
        tokens = rng.integers(10, SHAPE["vocab_size"], length + 1)
        learned = (np.arange(length) >= length // 2).astype(np.int64)
        places, blocks = np.arange(length), np.zeros(length, dtype=np.int64)
        examples.append(Example(tokens[:-1], tokens[1:], learned, places, blocks, 0))
    return collate(examples, BATCH)
