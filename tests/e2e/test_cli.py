"""The other verbs, run in process on a model that a test trained."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import openglm
from helpers_models import edit_json
from openglm.cli.main import _run
from openglm.registry import presets

GOLDENS = Path(__file__).parents[1] / "goldens" / "glm"


@pytest.fixture(scope="module")
def model(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model folder made by `glm pretrain`."""
    run = tmp_path_factory.mktemp("cli") / "run"
    options = ["--train.steps", "4", "--train.validate_every", "0", "--run", str(run), "--json"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENGLM_HOME", str(run.parent / "home"))
        assert _run(["pretrain", str(corpus / "tiny.toml"), *options], False) == 0
    return str(run / "model")


def _json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:  # type: ignore[type-arg]
    capsys.readouterr()
    assert _run([*arguments, "--json"], False) == 0
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]


def test_fill_reports_every_blank(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Programs read the blanks from --json; the text must be the prompt with them put in."""
    found = _json(capsys, "fill", model, "the [MASK] sat [gMASK]", "--max-tokens", "4")
    first, second = (blank["text"] for blank in found["blanks"])
    assert found["text"] == f"the{first} sat{second}"


def test_fill_reads_standard_input(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`-` stands for standard input, as everywhere."""
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("the cat [MASK]\n"))
    assert _json(capsys, "fill", model, "-", "--max-tokens", "2")["text"].startswith("the cat")


def test_generate_streams_the_same_text_as_json(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Streaming must not change what is generated."""
    options = ("generate", model, "the cat", "--seed", "5", "--max-tokens", "12")
    whole = _json(capsys, *options)
    assert _run([*options], False) == 0
    assert capsys.readouterr().out == "the cat" + whole["text"] + "\n"
    assert whole["seed"] == 5


def test_several_results_and_log_probabilities_as_json(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """JSON loses results or chokes on bytes; a terminal drops log-probabilities without a word."""
    options = ["--temperature", "1", "--n", "2", "--seed", "1", "--stop", "q", "--stop", "z"]
    for verb, text in (("generate", "the cat"), ("fill", "the [MASK]")):
        asked = [verb, model, text, "--max-tokens", "3", *options]
        found = _json(capsys, *asked, "--logprobs", "1")
        (other,) = found["others"]
        assert (found["seed"], other["seed"]) == (1, 2)
        tokens = found["logprobs"] if verb == "generate" else found["blanks"][0]["logprobs"]
        for token in tokens:
            assert bytes(token["bytes"]).decode(errors="replace") == token["text"]
            assert len(token["top"]) == 1
        assert _run([*asked, "--logprobs", "1"], False) == 2
        assert "--json" in capsys.readouterr().err


def test_demo_fills_every_prompt(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The demo must work with any model, and show what it says."""
    found = _json(capsys, "demo", model)
    assert len(found["results"]) >= 8
    assert _run(["demo", model], False) == 0
    assert "tokens/s" in capsys.readouterr().out


def test_info_lists_presets_and_describes_folders(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`glm info` is the catalogue: every preset, and any folder."""
    assert set(_json(capsys, "info")) == set(presets())
    assert _json(capsys, "info", "glm-10b")["parameters"] == 9_880_682_496
    assert _json(capsys, "info", model)["model"]["num_layers"] == 2
    assert _run(["info", "glm-10b"], False) == 0
    assert "48 pre-norm blocks" in capsys.readouterr().out


def test_doctor_measures(capsys: pytest.CaptureFixture[str]) -> None:
    """The doctor must say what is used and why, with a measured bandwidth."""
    found = _json(capsys, "doctor")
    assert "GB/s" in found["speed"]["memory bandwidth"]
    assert found["kernels"]["attention"]


def test_verify_passes_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong weight must turn `glm verify` red, with its own exit code."""
    golden = ["--golden", str(GOLDENS / "full_gmask.npz")]
    assert _json(capsys, "verify", str(GOLDENS / "hf"), *golden)["passed"] is True
    shutil.copytree(GOLDENS / "hf", tmp_path / "hf")
    config = tmp_path / "hf" / "config.json"
    config.write_text(
        config.read_text().replace('"num_attention_heads": 4', '"num_attention_heads": 2')
    )
    assert _run(["verify", str(tmp_path / "hf"), *golden], False) == 9


def test_verify_takes_the_head_count_from_beside_the_golden(tmp_path: Path) -> None:
    """A Megatron folder alone does not say how many heads it has."""
    shutil.copytree(GOLDENS / "megatron_MP2", tmp_path / "alone")
    golden = ["--golden", str(GOLDENS / "full_gmask.npz")]
    assert _run(["verify", str(tmp_path / "alone"), *golden], False) == 0
    shutil.copy(GOLDENS / "full_gmask.npz", tmp_path)
    golden = ["--golden", str(tmp_path / "full_gmask.npz")]
    assert _run(["verify", str(tmp_path / "alone"), *golden], False) == 4


@pytest.mark.parametrize("golden", ["meta.json", "nothing.npz"])
def test_verify_refuses_what_is_no_golden(golden: str) -> None:
    """A missing or foreign file must not count as verified."""
    assert _run(["verify", str(GOLDENS / "hf"), "--golden", str(GOLDENS / golden)], False) == 9


def test_convert_round_trip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Hf -> openglm -> megatron x 2 -> openglm must give back every bit."""
    first = tmp_path / "first"
    assert _json(capsys, "convert", str(GOLDENS / "hf"), str(first), "--to", "openglm")["to"]
    split = tmp_path / "split"
    options = ["--to", "megatron", "--tp", "2"]
    assert _run(["convert", str(first), str(split), *options], False) == 0
    back = tmp_path / "back"
    assert _run(["convert", str(split), str(back), "--to", "openglm"], False) == 0
    one, two = (folder / "model.safetensors" for folder in (first, back))
    assert one.read_bytes() == two.read_bytes()


def test_convert_to_gguf(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Users of llama.cpp get no file, not the one that they named, or unexpected numbers."""
    source = tmp_path / "chatglm2"
    shutil.copytree(GOLDENS.parent / "chatglm" / "chatglm2_tiny", source)
    edit_json(source / "config.json", torch_dtype="float16")
    folder = tmp_path / "models"
    options = ["--to", "gguf", "--dtype", "int4"]
    said = _json(capsys, "convert", str(source), str(folder), *options)
    assert said["dtype"] == "Q4_0"
    assert Path(said["target"]) == folder / "chatglm2-Q4_0.gguf"
    assert Path(said["target"]).read_bytes()[:4] == b"GGUF"
    named = tmp_path / "own.gguf"
    assert _run(["convert", str(source), str(named), "--to", "gguf"], False) == 0
    assert named.is_file()
    assert "rotary angles in float16" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["fill", "no blank here"], 7, "[MASK]"),
        (["fill", "a [MASK]", "--temperature", "-1"], 7, "temperature"),
        (["fill", "a [MASK]", "--max-tokens", "0"], 7, "max_tokens"),
        (["fill", "a [MASK]", "--dtype", "int3"], 2, "int3"),
        (["fill", "a [MASK]", "--colour"], 2, "--colour"),
        (["fill", "a", "[MASK]"], 2, "quotes"),
        (["info", "glm-11b"], 3, "glm-10b"),
        (["convert", "mini", "x", "--to", "ggfu"], 2, "'gguf'"),
        (["convert", "mini", "x", "--to", "gguf", "--tp", "2"], 2, "--tp 2"),
        (["convert", "mini", "x", "--to", "gguf"], 4, "position=learned_2d"),
        (["frobnicate"], 2, "frobnicate"),
    ],
)
def test_errors_are_one_line_with_a_hint(
    model: str,
    arguments: list[str],
    code: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A person must see what was wrong and what to do, not a traceback."""
    if arguments[0] == "fill":
        arguments = ["fill", model, *arguments[1:]]
    assert _run(arguments, False) == code
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said
    assert said.count("\n") <= 2


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    """A developer needs the whole story."""
    assert _run(["info", "glm-11b"], True) == 3
    assert "Traceback" in capsys.readouterr().err


def test_help_is_chinese_in_a_chinese_locale() -> None:
    """Most users read Chinese."""
    import os
    import subprocess
    import sys

    code = "from openglm.cli.main import main; main()"
    environment = {**os.environ, "LC_ALL": "zh_CN.UTF-8"}
    shown = subprocess.run(
        [sys.executable, "-c", code, "--help"], env=environment, capture_output=True, check=True
    )
    assert "续写文本" in shown.stdout.decode()


def test_an_empty_text_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty pipe makes the model invent a story, and a script goes on with it."""
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    for text in ("", "  ", "-"):
        assert _run(["generate", text], False) == 2
        assert "the text is empty" in capsys.readouterr().err


def test_a_usage_error_points_at_the_verb(capsys: pytest.CaptureFixture[str]) -> None:
    """The hint leads to a page without the option that was meant."""
    assert _run(["fill", "--foo", "x"], False) == 2
    assert "glm fill --help" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [([], "Commands"), (["-h"], "Commands"), (["--version"], "openglm 0.")],
)
def test_first_commands_of_a_newcomer(arguments: list[str], shown: str) -> None:
    """`glm` alone, `-h` or `--version` end in an error."""
    import os
    import subprocess
    import sys

    code = "from openglm.cli.main import main; main()"
    environment = {**os.environ, "LC_ALL": "C", "LANGUAGE": "", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert shown.encode() in done.stdout


def test_as_a_module() -> None:
    """Where `glm` is not on the path there is no other way to call it."""
    run = [sys.executable, "-m", "openglm", "--version"]
    assert openglm.__version__ in subprocess.run(run, capture_output=True, text=True).stdout
