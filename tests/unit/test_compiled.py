"""Networks on the compiled kernels: their numbers, and the memory of their weights."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch
from torch.testing import assert_close

import openglm
from helpers_models import NETWORKS, forward, random_model, tiny_config
from openglm.checkpoints import save_checkpoint
from openglm.compiled.transform import can_compile, compiled
from openglm.errors import UsageError
from openglm.nn.masks import MaskSpec

pytestmark = pytest.mark.skipif(
    not can_compile(random_model(tiny_config())), reason="the kernels were not built"
)
HALVES = (torch.float16, torch.bfloat16)
IDS = torch.arange(12).view(2, 6)


def rounded_model(config, dtype):
    """A float32 network whose weights are numbers of `dtype`."""
    model = random_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype))
    return model


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_compute_in_float32(name, dtype):
    """A residual, norm or activation is another one, or half-precision weights cost exactness."""
    config = tiny_config(**NETWORKS[name])
    mask = MaskSpec.causal()
    expected = forward(rounded_model(config, dtype), IDS, mask)
    found = forward(compiled(rounded_model(config, dtype).to(dtype)), IDS, mask)
    assert found.dtype == torch.float32
    assert_close(found, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_weights_stay_as_they_are_stored(dtype, tmp_path):
    """A checkpoint of 12 GB takes 24 GB, or its numbers change."""
    config = tiny_config()
    weights = rounded_model(config, dtype).to(dtype).state_dict()
    save_checkpoint(tmp_path / "model", config, weights, "openglm")
    stored = openglm.load(tmp_path / "model", device="cpu")
    assert stored.network.word_embeddings.weight.dtype == dtype
    widened = openglm.load(tmp_path / "model", dtype="float32", device="cpu")
    assert widened.network.word_embeddings.weight.dtype == torch.float32
    assert_close(stored.logits(IDS), widened.logits(IDS), atol=1e-5, rtol=1e-5)
    if dtype == torch.bfloat16:
        rough = openglm.load(tmp_path / "model", dtype="bfloat16", device="cpu").logits(IDS)
        assert not torch.equal(rough, stored.logits(IDS))
        assert_close(rough, stored.logits(IDS), atol=0.2, rtol=0.05)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_official_scales_are_not_rounded(dtype, tmp_path):
    """A model that is stored in bfloat16 is worse once it is quantized than the same in float32."""
    config = tiny_config()
    found = []
    for stored in (torch.bfloat16, torch.float32):
        weights = rounded_model(config, torch.bfloat16).to(stored).state_dict()
        save_checkpoint(tmp_path / str(stored), config, weights, "openglm")
        model = openglm.load(tmp_path / str(stored), dtype=dtype, device="cpu")
        found.append(model.logits(IDS))
    assert_close(found[0], found[1], atol=1e-6, rtol=1e-6)


def test_activations_meet_integers_as_asked(tmp_path):
    """A setting that changes numbers does nothing, or is taken where it could do nothing."""
    config = tiny_config(hidden_size=48)
    weights = random_model(config).state_dict()
    save_checkpoint(tmp_path / "model", config, weights, "openglm")

    def logits(dtype, activations):
        model = openglm.load(tmp_path / "model", dtype=dtype, device="cpu", activations=activations)
        return model.logits(IDS)

    exact, rough = (logits("int4-g32", how) for how in ("float32", "int8"))
    assert not torch.equal(exact, rough)
    assert torch.equal(rough, logits("int4-g32", "auto"))
    assert torch.equal(logits("int4", "float32"), logits("int4", "auto"))
    assert_close(rough, exact, atol=0.5, rtol=0.05)  # 1 in 127 of a group's largest activation
    for activations in ("float32", "int8"):
        with pytest.raises(UsageError, match="no effect on float weights"):
            logits("auto", activations)


@pytest.mark.parametrize("dtype", ["int8-g64", "int4-g32", "int4-g64-asym+embeddings+head"])
@pytest.mark.parametrize("name", NETWORKS)
def test_groups_equal_plain_torch(name, dtype, tmp_path, monkeypatch):
    """A scale, a minimum or a column of a packed weight is another in the kernels."""
    config = tiny_config(**NETWORKS[name])
    save_checkpoint(tmp_path / "model", config, random_model(config).state_dict(), "openglm")
    source = tmp_path / "model"
    fast = openglm.load(source, dtype=dtype, device="cpu", activations="float32")
    monkeypatch.setattr("openglm.loading.can_compile", lambda model: False)
    plain = openglm.load(source, dtype=dtype, device="cpu")
    assert type(fast.network.layers[0]) is not type(plain.network.layers[0])
    assert_close(fast.logits(IDS), plain.logits(IDS), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("wanted", "found"), [("reference", "None"), ("", "_native"), ("sse2", "KernelUnavailable")]
)
def test_the_environment_chooses_kernels(wanted, found):
    """The specification cannot be asked for, or a typing error runs something else."""
    code = "from openglm.kernels.cpu import module; print(module())"
    environment = os.environ | {"OPENGLM_KERNELS": wanted}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert found in done.stdout + done.stderr


def test_two_threads_compute_at_once():
    """Networks that share the threads of the kernels mix up their numbers, or wait for ever.

    One feeds many rows without Python's lock, the other single rows, which take it along.
    """
    model = openglm.load("mini", device="cpu", dtype="int8")
    lengths = {"many": 96, "few": 1}
    ids = {name: torch.arange(1, length + 1)[None] for name, length in lengths.items()}
    expected = {name: model.logits(one) for name, one in ids.items()}
    found = {name: [] for name in ids}

    def work(name, count):
        for _ in range(count):
            found[name].append(model.logits(ids[name]))

    counts = {"many": 6, "few": 60}
    threads = [threading.Thread(target=work, args=one) for one in counts.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    for name, every in found.items():
        assert len(every) == counts[name]
        assert all(torch.equal(one, expected[name]) for one in every), name
