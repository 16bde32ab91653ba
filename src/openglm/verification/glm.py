"""Recordings of GLM: full passes, cached decoding, cloze scores, beam search, input layouts.

Which of two recorded variants applies follows from the model: `*_hf` for the exact GELU,
`*_megatron` for the tanh one. What only the Megatron code can record (cloze, beam search) is
compared under the tanh GELU whatever the checkpoint, since the weights are the same. Special token
ids, where needed, come from `meta.json` beside the golden.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from openglm.engine.beam import BeamSettings, beam_search
from openglm.engine.decoder import Decoder
from openglm.engine.score import ScoringPrompt, score_choices, verbalizer_logits
from openglm.language_model import LanguageModel
from openglm.model import Transformer, build
from openglm.verification.meta import special_ids

VARIANTS = {"gelu_erf": "hf", "gelu_tanh": "megatron"}


class GLMRecording:
    """The arrays of one golden, and how to reproduce each kind."""

    def __init__(self, model: LanguageModel, path: Path, arrays: dict[str, NDArray[Any]]) -> None:
        self.model = model
        self.path = path
        self.arrays = arrays
        self.variant = VARIANTS[model.config.activation]

    def pairs(self) -> Iterator[tuple[str, NDArray[Any], NDArray[Any]]]:
        """(name, ours, recorded) for all that can be compared."""
        kinds = {
            f"logits_{self.variant}": self._full,
            "step_tokens": self._decode,
            "scores_length_penalty_0": self._cloze,
            "verbalizer_ids": self._verbalizers,
            "source_ids": self._beams,
        }
        if "targets" in self.arrays and self.arrays["input_ids"].ndim == 1:
            yield from self._unidirectional()
        for name, reproduce in kinds.items():
            if name in self.arrays:
                yield from reproduce()

    @cached_property
    def tanh_network(self) -> Transformer:
        """The network as the Megatron code runs it; shares the weights."""
        config = dataclasses.replace(self.model.config, activation="gelu_tanh")
        network = build(config)
        network.load_state_dict(self.model.network.state_dict(), assign=True)
        return network.requires_grad_(False).eval()

    def tensor(self, name: str) -> Tensor:
        """An array as int64 ids or float32."""
        return torch.from_numpy(np.ascontiguousarray(self.arrays[name]))

    def _run(self) -> Tensor:
        positions = self.tensor("position_ids")
        if "sep" in self.arrays:
            mask = self.tensor("sep").reshape(-1)
        else:
            mask = self.tensor("attention_mask")[:, 0] == 1
        return self.model.logits(
            self.tensor("input_ids"), positions[:, 0], positions[:, 1], mask
        ).cpu()

    def _full(self) -> Iterator[tuple[str, NDArray[Any], NDArray[Any]]]:
        name = f"logits_{self.variant}"
        logits = self._run()
        yield name, logits.numpy(), self.arrays[name]
        losses = {f"loss_{self.variant}": 0.0, f"loss_{self.variant}_label_smoothing_0p1": 0.1}
        for name, smoothing in losses.items():
            if name in self.arrays:
                scored = self.tensor("loss_mask") == 1
                loss = cross_entropy(
                    logits[scored], self.tensor("targets")[scored], label_smoothing=smoothing
                )
                yield name, loss.numpy(), self.arrays[name]

    def _decode(self) -> Iterator[tuple[str, NDArray[Any], NDArray[Any]]]:
        context = self.tensor("context_ids")
        steps = [
            self.tensor(name).reshape(1, -1)
            for name in ("step_tokens", "step_position_ids", "step_block_position_ids")
        ]
        length, count = context.shape[1], steps[0].shape[1]
        cache = self.model.new_cache(1, length + count)
        logits = self.model.logits(context, mask=torch.tensor([length]), cache=cache)
        name = f"context_logits_{self.variant}"
        yield name, logits.cpu().numpy(), self.arrays[name]
        rows = []
        for step in range(count):
            token, position, block = (values[:, step : step + 1] for values in steps)
            rows.append(self.model.logits(token, position, block, cache=cache)[0])
        name = f"step_logits_{self.variant}"
        yield name, torch.cat(rows).cpu().numpy(), self.arrays[name]

    def _cloze(self) -> Iterator[tuple[str, NDArray[Any], NDArray[Any]]]:
        context, position, sop = self._cloze_context(self.tensor("input_ids")[0, 0])
        choices = [
            self.arrays[f"choice_{index}"].tolist()
            for index in range(self.arrays["input_ids"].shape[1])
        ]
        for penalty in (0, 1):
            name = f"scores_length_penalty_{penalty}"
            prompt = ScoringPrompt(context, position, [sop])
            scores = score_choices(self.tanh_network, prompt, choices, float(penalty))
            yield name, np.array([[score.score for score in scores]]), self.arrays[name]

    def _verbalizers(self) -> Iterator[tuple[str, NDArray[Any], NDArray[Any]]]:
        context, position, sop = self._cloze_context(self.tensor("input_ids")[0])
        every = list(range(self.model.config.vocab_size))
        row = verbalizer_logits(self.tanh_network, context, position, every, sop)
        yield "sop_position_logits", row[None].numpy(), self.arrays["sop_position_logits"]
        chosen = row[self.tensor("verbalizer_ids")]
        yield "scores", chosen[None].numpy(), self.arrays["scores"]

    def _unidirectional(self) -> Iterator[tuple[str, NDArray[Any], NDArray[Any]]]:
        """The layout of a recorded unidirectional choice, rebuilt from its text and answer."""
        scored = self.arrays["loss_mask"] == 1
        first, last = np.flatnonzero(scored)[[0, -1]]
        ids = self.arrays["input_ids"]
        special = special_ids(self.path)
        text = ids[3 : first + 1].tolist()
        prompt = ScoringPrompt([special["ENC"], special["gMASK"]], 1, [special["sop"], *text])
        fed = [*prompt.head, *self.arrays["targets"][scored].tolist()[:-1]]
        length = int(last) + 1
        yield "input_ids", np.array([*prompt.context_ids, *fed]), ids[:length]
        behind = torch.stack(prompt.positions(len(fed))).numpy()
        rows = np.concatenate([[[0, 1], [0, 0]], behind], axis=1)
        yield "position_ids", rows, self.arrays["position_ids"][:, :length]
        yield "sep", np.array(len(prompt.context_ids)), self.arrays["sep"]

    def _cloze_context(self, input_ids: Tensor) -> tuple[list[int], int, int]:
        """Context ids, position of the blank, and the `sop` id, read off a recorded input."""
        length = int(self.arrays["sep"].reshape(-1)[0])
        positions = self.arrays["position_ids"].reshape(-1, 2, len(input_ids))[0, 0]
        return input_ids[:length].tolist(), int(positions[length]), int(input_ids[length])

    def _beams(self) -> Iterator[tuple[str, NDArray[Any], NDArray[Any]]]:
        special = special_ids(self.path)
        source = self.tensor("source_ids")
        positions = (source == special["MASK"]).int().argmax(dim=1).tolist()
        suffix = "_settings_beams_lp_ngram_minlen_maxsteps"
        for tag in (name.removesuffix(suffix) for name in self.arrays if name.endswith(suffix)):
            beams, penalty, ngram, shortest, longest = self.arrays[tag + suffix].tolist()
            end = int(self.arrays[f"{tag}_end_token"])
            settings = BeamSettings(
                num_beams=int(beams),
                max_tokens=int(longest),
                length_penalty=penalty,
                no_repeat_ngram_size=int(ngram),
                min_tokens=int(shortest),
                end_ids=[end],
            )
            contexts = [[*row, special["sop"]] for row in source.tolist()]
            decoder = Decoder(self.tanh_network, source, int(longest))
            found = [best[0] for best in beam_search(decoder, contexts, positions, settings)]
            width = max(len(hypothesis.tokens) for hypothesis in found)
            tokens = np.full((len(found), width), special["pad"])
            for row, hypothesis in enumerate(found):
                ended = [*hypothesis.tokens, end][:width]
                tokens[row, : len(ended)] = ended
            yield f"{tag}_tokens", tokens, self.arrays[f"{tag}_tokens"]
            scores = np.array([hypothesis.score for hypothesis in found])
            yield f"{tag}_scores", scores, self.arrays[f"{tag}_scores"]
