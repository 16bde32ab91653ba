"""What is refused before its weights are read, and what the system says is free."""

from __future__ import annotations

import logging

import pytest
import torch

import openglm
from openglm import headroom, loading, process
from openglm.cli.main import _run
from openglm.errors import NotEnoughMemory, UsageError
from openglm.headroom import check_memory, dtype_name, needed_bytes
from openglm.registry import preset
from openglm.scheme import find_scheme

CPU = torch.device("cpu")
CONFIG = preset("chatglm2-6b").model
GIB = 2**30


@pytest.fixture
def free(monkeypatch):
    """Says how much memory is free."""

    def say(number):
        monkeypatch.setattr(headroom, "available_bytes", lambda: number)

    return say


def test_what_does_not_fit_is_refused_with_numbers_and_a_way_out(free):
    """The system kills the process at half of the weights, and nobody says why."""
    free(8 * 10**9)
    with pytest.raises(NotEnoughMemory, match=r"m in bfloat16 needs 12\.\d GB; 8\.0 GB") as caught:
        check_memory("m", CONFIG, "bfloat16", CPU)
    assert isinstance(caught.value, UsageError)
    assert "dtype int8 needs" in caught.value.hint
    assert "OPENGLM_MEMORY_CHECK=off" in caught.value.hint
    free(5 * 10**9)
    with pytest.raises(NotEnoughMemory) as caught:
        check_memory("m", CONFIG, "bfloat16", CPU)
    assert "dtype int4 needs" in caught.value.hint
    free(10**9)
    for dtype in ("bfloat16", "int4"):
        with pytest.raises(NotEnoughMemory) as caught:
            check_memory("m", CONFIG, dtype, CPU)
        assert "a smaller model" in caught.value.hint


def test_what_leaves_no_room_for_a_long_text_is_warned_of(free, caplog):
    """A model that answers short questions is refused, or ends the process at a long one."""
    short, long = (needed_bytes(CONFIG, "int4", CPU, tokens) for tokens in (32, 2048))
    assert short < long
    with caplog.at_level(logging.WARNING, "openglm"):
        free(long)
        check_memory("m", CONFIG, "int4", CPU)
        assert not caplog.messages
        free(short)
        check_memory("m", CONFIG, "int4", CPU)
        assert "for a text of 2048 tokens" in caplog.text
    free(short - 1)
    with pytest.raises(NotEnoughMemory):
        check_memory("m", CONFIG, "int4", CPU)


def test_it_can_be_overruled(free, monkeypatch):
    """An estimate is wrong, or memory comes free meanwhile, and nobody can go on."""
    free(1)
    monkeypatch.setenv("OPENGLM_MEMORY_CHECK", "off")
    check_memory("m", CONFIG, "float32", CPU)
    monkeypatch.delenv("OPENGLM_MEMORY_CHECK")
    free(None)  # a system that does not say
    check_memory("m", CONFIG, "float32", CPU)


def test_a_gpu_is_asked_itself(free, monkeypatch):
    """Memory of the machine stands for that of the card."""
    free(1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda place: (13 * 10**9, 24 * 10**9))
    check_memory("m", CONFIG, "float16", torch.device("cuda:0"))
    with pytest.raises(NotEnoughMemory, match=r"13\.0 GB of cuda:0"):
        check_memory("m", CONFIG, "float32", torch.device("cuda:0"))


def test_names_of_dtypes():
    """What is counted is not what will be in memory."""
    assert dtype_name(torch.float16, None) == "float16"
    assert dtype_name(torch.float16, find_scheme("int4-g64")) == "int4-g64"


def test_loading_asks_before_it_reads(free, monkeypatch):
    """The check comes after the weights, or some way of loading goes around it."""
    free(1000)
    monkeypatch.setattr(loading, "load_source", None)
    monkeypatch.setattr(loading, "load_random", None)
    with pytest.raises(NotEnoughMemory, match="mini in float32 needs"):
        openglm.load("mini", dtype="float32", device="cpu")
    with pytest.raises(NotEnoughMemory, match="glm-130b in int4-g64 needs"):
        openglm.load("glm-130b", dtype="int4-g64", device="cpu", random_weights=True)


@pytest.mark.parametrize("verb", [["chat"], ["generate", "mini", "x"], ["fill", "mini", "[MASK]"]])
def test_the_command_line_says_it(verb, free, capsys):
    """`glm chat` ends with a trace, or with nothing."""
    free(1000)
    assert _run([*verb, "--device", "cpu"], False) == 2
    assert "OPENGLM_MEMORY_CHECK=off" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("line", "place", "limit", "usage", "share"),
    [
        ("0::/a/b", "", "memory.max", "memory.current", ""),
        ("4:memory:/a/b", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ],
)
def test_the_limit_of_a_container_counts(line, place, limit, usage, share, tmp_path, monkeypatch):
    """A container of 4 GiB on a machine of 64 is thought to have 64."""
    root = tmp_path / "cgroup"
    inner = root / place / "a" / "b"
    inner.mkdir(parents=True)
    meminfo, own = tmp_path / "meminfo", tmp_path / "own"
    meminfo.write_text(f"MemTotal: {64 << 20} kB\nMemAvailable:   {50 << 20} kB\n")
    own.write_text(f"2:cpu:/x\n{line}\n")
    for name, path in (("_MEMINFO", meminfo), ("_CGROUP", own), ("_CGROUPS", root)):
        monkeypatch.setattr(process, name, path)
    assert process.available_bytes() == 50 * GIB
    (inner / limit).write_text("max\n")
    (inner / usage).write_text(f"{3 * GIB}\n")
    assert process.available_bytes() == 50 * GIB
    (inner.parent / limit).write_text(f"{4 * GIB}\n")  # of the group around it
    (inner.parent / usage).write_text(f"{3 * GIB}\n")
    assert process.available_bytes() == GIB
    stat = f"{share}inactive_file {GIB}\n{share}active_file {GIB // 2}\nanon 7\n"
    (inner.parent / "memory.stat").write_text(stat)
    assert process.available_bytes() == 2.5 * GIB
    meminfo.unlink()
    assert process.available_bytes() == 2.5 * GIB
    own.unlink()
    assert process.available_bytes() is None
