"""Names: of presets, repositories and folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from openglm.errors import ConfigError, DownloadError, OpenGLMError, UsageError
from openglm.home import find_model, models
from openglm.hub import find_target, open_hub
from openglm.hub.huggingface import HuggingFace
from openglm.hub.modelscope import ModelScope
from openglm.registry import find_preset, is_repository, presets


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENGLM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)  # an existing folder is a name, too


@pytest.mark.parametrize("key", presets())
def test_every_preset_says_where_it_is(key: str) -> None:
    """A known model that nobody can get."""
    published = presets()[key].hub
    assert published.repositories or published.by_hand
    for name in published.repositories:
        assert is_repository(name)
        assert published.revision or find_preset(name) == key, f"{name} must be an alias of {key}"
    assert published.huggingface is None or published.huggingface.startswith("zai-org/")
    assert published.modelscope is None or published.modelscope.startswith("ZhipuAI/")


@pytest.mark.parametrize(
    ("name", "hub", "expected"),
    [
        ("chatglm2-6b", None, ("chatglm2-6b", "huggingface", "zai-org/chatglm2-6b")),
        ("THUDM/chatglm2-6b", None, ("chatglm2-6b", "huggingface", "zai-org/chatglm2-6b")),
        ("chatglm2-6b", "modelscope", ("chatglm2-6b", "modelscope", "ZhipuAI/chatglm2-6b")),
        ("ZhipuAI/chatglm2-6b", None, ("chatglm2-6b", "modelscope", "ZhipuAI/chatglm2-6b")),
        ("chatglm-6b", "modelscope", ("chatglm-6b", "modelscope", "ZhipuAI/ChatGLM-6B")),
        ("BAAI/glm-10b", None, ("glm-10b", "huggingface", "zai-org/glm-10b")),
        ("org/other", None, ("org--other", "huggingface", "org/other")),
        ("org/other", "modelscope", ("org--other", "modelscope", "org/other")),
        # An alias of the architecture, but other weights.
        (
            "THUDM/chatglm3-6b-base",
            None,
            ("zai-org--chatglm3-6b-base", "huggingface", "THUDM/chatglm3-6b-base"),
        ),
    ],
)
def test_what_a_name_means(name: str, hub: str | None, expected: tuple[str, str, str]) -> None:
    """Another model than the named one is fetched, or into another place than it is looked for."""
    target = find_target(name, hub)
    assert (target.name, target.hub, target.repository) == expected
    folder = models() / target.name
    folder.mkdir(parents=True)
    assert find_model(name) == folder


def test_the_licence_of_related_weights_is_that_of_the_family() -> None:
    """The base model of ChatGLM3 appears to be without terms."""
    assert "registration" in find_target("THUDM/chatglm3-6b-base").licence


def test_the_first_chatglm_is_an_old_commit() -> None:
    """The newest commit has another vocabulary, and the preset does not fit it."""
    assert find_target("chatglm-6b-first").revision == "551a50efec3acc5a9b94de8ec46d33d0f81919f7"
    assert find_target("chatglm-6b").revision is None


@pytest.mark.parametrize("name", ["glm-130b", "THUDM/GLM-130B", "codegeex-13b", "glm-base"])
def test_models_on_no_hub_say_how_to_get_them(name: str) -> None:
    """The user tries hub after hub."""
    with pytest.raises(DownloadError, match="is on no hub") as caught:
        open_hub(find_target(name))
    assert "--from FOLDER" in caught.value.hint
    assert "http" in caught.value.hint
    with pytest.raises(ConfigError, match="its weights are not here") as missing:
        find_model(name)
    assert "--from FOLDER" in missing.value.hint


def test_a_hub_that_does_not_have_it() -> None:
    """--hub is ignored, or ends in a 404."""
    with pytest.raises(DownloadError, match="ModelScope does not have glm-large") as caught:
        find_target("glm-large", "modelscope")
    assert "Hugging Face does" in caught.value.hint


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "../../x",
        "/etc/passwd",
        "org/../x",
        "org/..",
        "..",
        ".",
        "",
        "a/b/c",
        "org/x\n",
        "org/x y",
        "org/-x",
        "org/.x",
        "~/x",
        "org\\x",
        "org/x\0",
        "org--x/y",
        "org/" + "x" * 200,
        "ｏｒｇ/x",
        "sha256:../x",
    ],
)
def test_names_that_are_no_names(name: str) -> None:
    """The model is written to, or read from, a folder outside of the store."""
    with pytest.raises(ConfigError, match="neither a known model nor a repository"):
        find_target(name)
    if name not in (".", ".."):  # folders, which a user may name
        with pytest.raises(OpenGLMError):
            find_model(name)


def test_near_names_are_suggested() -> None:
    """After a typing slip the user would have to search for the name."""
    with pytest.raises(ConfigError) as caught:
        find_target("chatglm2-6")
    assert "did you mean 'chatglm2-6b'" in caught.value.hint


def test_mini_and_unknown_hubs() -> None:
    """Nothing is fetched and nothing is said."""
    with pytest.raises(UsageError, match="built in"):
        find_target("mini")
    with pytest.raises(UsageError, match="unknown hub 'modelscpe'") as caught:
        find_target("chatglm2-6b", "modelscpe")
    assert "modelscope" in caught.value.hint


def test_a_model_that_was_not_downloaded_says_how() -> None:
    """The message leads nowhere."""
    for name in ("chatglm2-6b", "THUDM/chatglm2-6b", "org/other"):
        with pytest.raises(ConfigError) as caught:
            find_model(name)
        assert caught.value.hint == f"glm download {name.removeprefix('THUDM/')}"


@pytest.mark.parametrize(
    ("variables", "address"),
    [
        ({}, "https://modelscope.cn"),
        ({"MODELSCOPE_DOMAIN": "modelscope.example"}, "https://modelscope.example"),
        (
            {"MODELSCOPE_ENDPOINT": "http://own/", "MODELSCOPE_DOMAIN": "x.example"},
            "http://own",
        ),
    ],
)
def test_addresses_from_the_environment(
    variables: dict[str, str], address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Users in China set HF_ENDPOINT once, and expect every program to hear it."""
    for name in ("MODELSCOPE_ENDPOINT", "MODELSCOPE_DOMAIN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert ModelScope().endpoint == address
    assert HuggingFace().endpoint == "https://huggingface.co"
    monkeypatch.setenv("HF_ENDPOINT", "https://hf-mirror.com/")
    assert HuggingFace().endpoint == "https://hf-mirror.com"
    assert HuggingFace("http://127.0.0.1:1/").endpoint == "http://127.0.0.1:1"
    with pytest.raises(UsageError, match="no address"):
        HuggingFace("ftp://x")
