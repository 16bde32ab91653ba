"""`glm quantize`: the report, the texts it reads, what it leaves behind, and its memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import openglm
from helpers_models import GLM_GOLDENS, random_model, tiny_config
from openglm.checkpoints import describe_checkpoint, open_checkpoint, save_checkpoint
from openglm.cli.main import _run
from openglm.home import find_model
from openglm.memory import weight_bytes
from openglm.quant.calibrate import CalibratedWeights
from openglm.quant.transform import QuantizedWeights
from openglm.quantize import quantize
from openglm.quantize.passages import UNSCORED, lay_out, read_text
from openglm.quantize.quality import compare, compared_bytes
from openglm.quantize.run import Job, _measured
from openglm.registry import preset
from openglm.scheme import find_scheme

ROOT = Path(__file__).parents[2]
TEXT = ROOT / "recipes" / "tiny" / "text.txt"
CHATGLM = GLM_GOLDENS.parent / "chatglm"
MIB = 2**20


def run(capsys, *arguments: str) -> dict:
    assert _run(["quantize", *arguments, "--json"], False) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def english(tmp_path_factory):
    """Prose that mini was not trained to know by heart, unlike the poems of the same file."""
    prose = TEXT.read_text(encoding="utf-8").split("\n\n")
    path = tmp_path_factory.mktemp("text") / "english.txt"
    path.write_text("\n\n".join(p for p in prose if p.isascii())[:9000], encoding="utf-8")
    return path


def test_the_report(capsys, tmp_path, english):
    """Sizes are not those of the files, or quality is measured on nothing."""
    target = tmp_path / "out"
    arguments = ["--bits", "8,4", "--group-size", "64", "--eval", str(english)]
    told = run(capsys, "mini", str(target), *arguments)["reports"]
    assert [report["scheme"] for report in told] == ["int8-g64", "int4-g64"]
    assert sorted(path.name for path in target.iterdir()) == ["int4-g64", "int8-g64"]
    for report, bits in zip(told, (8, 4), strict=True):
        folder = target / report["scheme"]
        assert json.loads((folder / "report.json").read_text()) == report
        assert report["bits_per_quantized_weight"] == bits + 16 / 64
        file = (folder / "model.safetensors").stat().st_size
        assert 0 < file - report["weight_bytes"] < 30_000  # the table of contents
        assert report["source_bytes"] > report["weight_bytes"]
        assert report["tokens_per_s"] > 0
        assert report["source_tokens_per_s"] > 0
        assert report["quality"]["tokens"] > 1500
        assert 0 < report["quality"]["kl_mean"] < report["quality"]["kl_p99"]
    assert describe_checkpoint(target / "int4-g64")[3] == find_scheme("int4-g64")
    assert openglm.load(target / "int8-g64").generate("Once", max_tokens=3).text


def test_quality_is_measured_unless_said_otherwise(capsys, tmp_path, monkeypatch):
    """Nobody thinks of a text, so nobody hears what a width costs."""
    words = ["quantize", "mini", str(tmp_path / "out"), "--bits", "4"]
    assert _run(words, False) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["text"] == "held_out.txt"
    assert report["no_quality"] is None
    assert 1000 < report["quality"]["tokens"] < 2000
    assert 0 < report["perplexity_change"] < 0.05
    told = " ".join(capsys.readouterr().out.split())
    assert f"of {report['quality']['tokens']:,} tokens of held_out.txt" in told
    monkeypatch.setattr("openglm.quantize.run.available_bytes", lambda: 10**6)
    without = run(capsys, "mini", str(tmp_path / "poor"), "--bits", "4")["reports"][0]
    assert without["quality"] is None
    assert without["no_quality"].endswith("GB of memory, and 0.0 GB are free")
    bare = run(capsys, str(CHATGLM / "chatglm2_tiny"), str(tmp_path / "bare"), "--bits", "8")
    assert "no tokenizer" in bare["reports"][0]["no_quality"]


def test_quality_of_a_large_model_is_measured_on_fewer_tokens():
    """The report of a model of 6 B parameters takes longer than quantizing it."""
    tokenizer = openglm.load("mini").tokenizer
    job = Job(source=Path("a"), target=Path("b"), schemes=[], tokenizer=tokenizer)
    for name, fewest, most in (("chatglm2-6b", 380, 410), ("glm-130b", 240, 260)):
        text = _measured(job, preset(name).model)
        assert fewest < sum(len(passage.targets) for passage in text.passages) < most
    config = preset("chatglm2-6b").model
    assert compared_bytes(config) < 0.2 * weight_bytes(config, "bfloat16")


def test_quality_of_mini(english):
    """The targets of the project: INT8 within 0.1 %, INT4 in groups of 32 within 3 %."""
    source = open_checkpoint(find_model("mini"))
    tokenizer = openglm.load("mini").tokenizer
    passages = read_text(english, tokenizer, source.config, 0.0, 16).passages
    for name, most in (("int8", 0.001), ("int8-g128", 0.001), ("int4-g32", 0.03)):
        scheme = find_scheme(name)
        weights = QuantizedWeights(source, source.config, scheme)
        quality = compare(source.config, source, weights, scheme, passages)
        assert quality.perplexity_change < most, (name, quality)


def test_calibration_pays(english):
    """GPTQ on other text of the same kind leaves the model no nearer to its source."""
    source = open_checkpoint(find_model("mini"))
    tokenizer = openglm.load("mini").tokenizer
    passages = read_text(english, tokenizer, source.config, 0.0, 16).passages
    calibrating = read_text(english, tokenizer, source.config, 0.5, 16).passages[6:]
    scheme = find_scheme("int4-g128")
    inputs = [passage.inputs for passage in calibrating]
    kl = [
        compare(source.config, source, dict(weights), scheme, passages[:6]).kl_mean
        for weights in (
            QuantizedWeights(source, source.config, scheme),
            CalibratedWeights(source, source.config, scheme, inputs),
        )
    ]
    assert kl[1] < 0.9 * kl[0]


def test_calibrating_by_the_command_line(capsys, tmp_path, english):
    """A calibrated folder does not say how it was made."""
    options = ["--samples", "2", "--act-order", "--no-eval"]
    arguments = ["--bits", "4", "--calibrate", str(english), *options]
    (report,) = run(capsys, "mini", str(tmp_path / "out"), *arguments)["reports"]
    assert (report["quality"], report["no_quality"]) == (None, "not asked for")
    made_by = json.loads((tmp_path / "out" / "config.json").read_text())["quantization"]["made_by"]
    assert (made_by["method"], made_by["passages"]) == ("gptq", 2)
    assert made_by["activation_order"] is True
    assert len(made_by["text_sha256"]) == 64


@pytest.mark.parametrize("bits", ["8", "4"])
def test_official_rows_are_the_official_files(bits, capsys, tmp_path):
    """Glm quantize --group-size 0 and glm convert --to hf make other files than the published."""
    from safetensors.torch import load_file

    arguments = ["--bits", bits, "--group-size", "0"]
    run(capsys, str(CHATGLM / "chatglm2_tiny"), str(tmp_path / "rows"), *arguments)
    folders = [str(tmp_path / "rows"), str(tmp_path / "hf")]
    assert _run(["convert", *folders, "--to", "hf"], False) == 0
    found = load_file(tmp_path / "hf" / "model.safetensors")
    official = load_file(CHATGLM / "quantization" / f"chatglm2_tiny_int{bits}.safetensors")
    for name in (n for n, tensor in official.items() if tensor.dtype == torch.int8):
        assert torch.equal(found[name], official[name]), name
        scale = official[f"{name}_scale"]
        assert torch.equal(found[f"{name}_scale"].to(scale.dtype), scale), name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--bits", "3"], "3 bits are not possible"),
        (["--bits", "four"], "--bits 'four'"),
        (["--bits", "4,4"], "asked for twice"),
        (["--bits", "4", "--group-size", "16"], "groups of 16"),
        (["--bits", "4", "--include", "haed"], "head"),
        (["--bits", "4", "--group-size", "0", "--include", "head"], "for the blocks only"),
        (["--bits", "4", "--group-size", "0", "--calibrate", "TEXT"], "rounds to nearest"),
        (["--bits", "4", "--act-order"], "needs a calibration text"),
        (["--bits", "4", "--eval", "nothing.txt"], "no file"),
        (["--bits", "4", "--eval", "TEXT", "--no-eval"], "contradict"),
    ],
)
def test_what_is_refused(arguments, said, capsys, tmp_path):
    """A mistake is found after hours, or leaves a folder that looks finished."""
    arguments = [str(TEXT) if word == "TEXT" else word for word in arguments]
    assert _run(["quantize", "mini", str(tmp_path / "out"), *arguments], False) != 0
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_quantizing_twice(capsys, tmp_path):
    """Integers are taken for floats."""
    config = tiny_config()
    weights = QuantizedWeights(random_model(config).state_dict(), config, find_scheme("int8-g32"))
    save_checkpoint(tmp_path / "q", config, weights, "openglm")
    assert _run(["quantize", str(tmp_path / "q"), str(tmp_path / "out"), "--bits", "4"], False) != 0
    assert "quantized already" in capsys.readouterr().err


def test_passages_of_mini():
    """Texts are laid out otherwise than mini was trained."""
    model = openglm.load("mini")
    special = model.tokenizer.special
    passage = lay_out([50, 51, 52, 53], model.tokenizer, model.config, 0.5)
    marks = [special.cls_id, 50, 51, special.gmask_id, special.sop_id, 52]
    assert passage.inputs.input_ids.tolist() == [marks]
    assert passage.inputs.position_ids.tolist() == [[0, 1, 2, 3, 3, 3]]
    assert passage.inputs.block_position_ids.tolist() == [[0, 0, 0, 0, 1, 2]]
    assert passage.targets.tolist() == [*[UNSCORED] * 4, 52, 53]


MEASURED = """
import resource, sys
from pathlib import Path
from openglm.checkpoints import open_checkpoint, save_checkpoint
from openglm.quant.transform import QuantizedWeights
from openglm.scheme import find_scheme
source = open_checkpoint(Path(sys.argv[1]))
weights = QuantizedWeights(source, source.config, find_scheme("int4-g32"))
save_checkpoint(Path(sys.argv[2]), source.config, weights, "openglm")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def test_peak_memory_of_the_stream(tmp_path):
    """Models that do not fit into memory cannot be quantized.

    Allowed are what is read between two openings of the files (128 MiB), a tensor (19 MB), its
    intermediate results, and what the C library keeps.
    """
    sizes = {"hidden_size": 1536, "intermediate_size": 6144, "num_layers": 8}
    peaks = {}
    for name, config in (("large", tiny_config(**sizes)), ("small", tiny_config())):
        weights = random_model(config).half().state_dict()
        save_checkpoint(tmp_path / name, config, weights, "openglm")
        del weights
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, str(tmp_path / name), str(tmp_path / f"{name}-q")],
            capture_output=True,
            text=True,
            check=True,
        )
        peaks[name] = int(done.stdout)
    assert (tmp_path / "large" / "model.safetensors").stat().st_size > 430 * MIB
    assert peaks["large"] - peaks["small"] < 300 * MIB


def test_interrupted(tmp_path, monkeypatch):
    """Ctrl-C leaves a folder that looks finished, or fills the disk with rests."""

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("openglm.quantize.run.measure", stop)
    job = Job(source=find_model("mini"), target=tmp_path / "out", schemes=[find_scheme("int4-g32")])
    with pytest.raises(KeyboardInterrupt):
        quantize(job)
    assert list(tmp_path.iterdir()) == []
