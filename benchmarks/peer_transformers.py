"""transformers' GLM with random bfloat16 weights of ChatGLM2-6B's shapes; reads prompts.

python benchmarks/peer_transformers.py MODEL LAYERS PROMPT_TOKENS REPEATS

Its stock `Glm` is the same network: rotary pairs side by side on half of each head, grouped keys,
biases on queries, keys and values, SwiGLU. Only the last token's logits are asked for. Prints JSON:
seconds to read each prompt behind a first one that warms up, and parameters.
"""

import json
import sys
from time import perf_counter

import torch
from transformers import GlmConfig, GlmForCausalLM

from openglm.registry import preset


def main(name: str, num_layers: int, prompt: int, repeats: int) -> None:
    """Builds the network, and reads."""
    config = preset(name).model
    model = GlmForCausalLM._from_config(
        GlmConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=num_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.head_dim,
            attention_bias=config.qkv_bias,
            max_position_embeddings=config.max_position_embeddings,
            tie_word_embeddings=config.tie_word_embeddings,
            pad_token_id=0,
        ),
        dtype=torch.bfloat16,
    ).eval()
    generator = torch.Generator().manual_seed(0)
    times = []
    with torch.no_grad():
        for _ in range(1 + repeats):
            ids = torch.randint(config.vocab_size, (1, prompt), generator=generator)
            start = perf_counter()
            model(ids, use_cache=True, logits_to_keep=1)
            times.append(perf_counter() - start)
    found = {"read_s": times[1:], "parameters": sum(p.numel() for p in model.parameters())}
    sys.stdout.write(json.dumps(found))


main(sys.argv[1], *map(int, sys.argv[2:]))
