"""`glm serve`: models behind an HTTP API, for existing OpenAI and BigModel clients."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openglm.cli import options
from openglm.cli.keys import DatabaseUrl
from openglm.cli.language import say
from openglm.errors import UsageError

if TYPE_CHECKING:
    from openglm.serve.config_file import ServeFile
    from openglm.serve.keys import KeyStore
    from openglm.serve.known import Known
    from openglm.serve.model_table import ModelTable

SERVER_FLAGS = {
    "host": "host",
    "port": "port",
    "public_name": "public_names",
    "origin": "origins",
    "drain_seconds": "drain_seconds",
    "legacy": "legacy",
    "web_path": "web_path",
    "no_web": "no_web",
    "no_request_log": "no_request_log",
    "database": "database",
}
"""Flag -> key of `[server]` that it stands for, or replaces."""
MODEL_FLAGS = {
    "dtype": "dtype",
    "device": "device",
    "memory": "memory_gib",
    "kv_dtype": "kv_dtype",
    "max_drafts": "max_drafts",
}
"""Likewise of each of the `[[models]]`."""
ONE_MODEL = {"model": "source", "name": "name", "alias": "aliases", "tokenizer": "tokenizer"}
"""Likewise, of a model that no file names."""


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(
        "serve",
        help=say(
            "Serve a model to OpenAI and BigModel clients.",
            "为 OpenAI 与智谱客户端提供模型服务。",
        ),
    )(serve)


def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="[MODEL]")] = "mini",
    host: Annotated[str, typer.Option(help=say("Address.", "监听地址。"))] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help=say("Port.", "端口。"))] = 8000,
    name: Annotated[
        str | None, typer.Option(help=say("As clients ask for it.", "客户端使用的模型名。"))
    ] = None,
    alias: Annotated[
        list[str] | None, typer.Option(help=say("Further names.", "别名，可多次给出。"))
    ] = None,
    tokenizer: options.TokenizerFolder = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    memory: Annotated[
        float,
        typer.Option(min=0.001, help=say("GiB of keys and values.", "键值缓存的 GiB 数。")),
    ] = 1.0,
    kv_dtype: Annotated[
        str, typer.Option(help=say("Of keys and values.", "键值缓存的数值类型。"))
    ] = "auto",
    max_drafts: Annotated[
        int, typer.Option(min=0, help=say("Tokens guessed ahead.", "预先猜测的词元数。"))
    ] = 0,
    public_name: Annotated[
        list[str] | None,
        typer.Option(
            help=say("Host names that clients use, besides localhost.", "客户端使用的主机名。")
        ),
    ] = None,
    origin: Annotated[
        list[str] | None,
        typer.Option(help=say("Web pages that may call it.", "允许跨域访问的网页来源。")),
    ] = None,
    drain_seconds: Annotated[
        float, typer.Option(min=0, help=say("For calls in work at the end.", "退出前的等待秒数。"))
    ] = 60.0,
    legacy: Annotated[
        bool,
        typer.Option("--legacy", help=say("POST / as ChatGLM's api.py.", "兼容旧版 api.py 接口。")),
    ] = False,
    web_path: Annotated[
        str | None, typer.Option(help=say("Of the web page; else /.", "网页的路径，默认 /。"))
    ] = None,
    no_web: Annotated[
        bool, typer.Option("--no-web", help=say("No web page.", "不提供网页。"))
    ] = False,
    no_request_log: Annotated[
        bool,
        typer.Option("--no-request-log", help=say("No line per request.", "日志不逐条记录请求。")),
    ] = False,
    database: DatabaseUrl = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help=say("Like serve.toml.", "配置文件，如 serve.toml。")),
    ] = None,
    ray: Annotated[
        bool,
        typer.Option("--ray", help=say("Run replicas under Ray Serve.", "由 Ray Serve 运行副本。")),
    ] = False,
    replicas: Annotated[
        str | None, typer.Option(help=say("With --ray: 2, or 1-4.", "与 --ray 同用：2，或 1-4。"))
    ] = None,
) -> None:
    """Loads models and answers until Ctrl-C; the first time it makes a key and shows it.

    What is given here goes before what the file says, for all models that it names.
    """
    try:
        from openglm.serve.app import create_app
        from openglm.serve.config_file import ServeFile, read_serve_file
        from openglm.serve.database import Database
        from openglm.serve.guard import GuardSettings
        from openglm.serve.json_lines import json_lines
        from openglm.serve.keys import KeyStore
        from openglm.serve.origin import KnownNames
        from openglm.serve.server import Server, bind
        from openglm.serve.settings import ServeSettings
    except ImportError as error:
        raise UsageError(
            f"serving needs packages that are not installed: {error}",
            hint="pip install 'openglm[serve]'",
        ) from error
    found = ServeFile() if config is None else read_serve_file(config)
    chosen = _with_flags(found, _given(context))
    server = chosen.server
    page = _path_of_page(server.web_path, server.no_web)
    settings = ServeSettings(
        aliases=chosen.aliases,
        limits=chosen.limits,
        legacy=server.legacy,
        web_path=page,
        guard=GuardSettings(KnownNames(server.public_names, server.origins)),
    )
    if replicas is not None and not ray:
        raise UsageError(f"--replicas {replicas} goes with --ray")
    models = _replicated(chosen.models, replicas) if ray else _here(chosen.models)
    with (
        json_lines(of_requests=not server.no_request_log),
        bind(server.host, server.port) as listener,  # before models are read
        models as known,
    ):
        state = Database(server.database)
        keys = KeyStore(state)
        app = create_app(known, state, keys, settings)
        option = f" --database {state.url}" if server.database else ""
        _greet(", ".join(known), f"http://{server.host}:{server.port}", page, keys, option)
        Server(app, server.drain_seconds).run([listener])


@contextmanager
def _here(models: Sequence[ModelTable]) -> Iterator[dict[str, Known]]:
    """Models of this process, by name; those of the start are read."""
    known = [model.known() for model in models]
    for one in known:
        if one.loads_at_start:
            one.prepare()
    yield {one.name: one for one in known}


@contextmanager
def _replicated(models: Sequence[ModelTable], replicas: str | None) -> Iterator[dict[str, Known]]:
    """Models in processes of their own, by name."""
    from openglm.serve.replicas.cluster import Scale, cluster
    from openglm.serve.replicas.models import replicated_models

    replicated = replicated_models(models, Scale.parse(replicas or "1"))  # before Ray starts
    with cluster(), replicated as known:
        yield known


def _given(context: typer.Context) -> dict[str, Any]:
    """What was written on the command line, defaults left out."""
    every = context.params.items()
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {n: value for n, value in every if getattr(sources[n], "name", "") == "COMMANDLINE"}


def _with_flags(file: ServeFile, given: dict[str, Any]) -> ServeFile:
    """A configuration, changed as the command line says.

    Raises:
        UsageError: the command line names a model, and so does the file.
    """
    from openglm.serve.model_table import ModelTable

    server = {key: given[flag] for flag, key in SERVER_FLAGS.items() if flag in given}
    of_all = {key: given[flag] for flag, key in MODEL_FLAGS.items() if flag in given}
    of_one = {key: given[flag] for flag, key in ONE_MODEL.items() if flag in given}
    if of_one and file.models:
        named = ", ".join(f"{key}={value!r}" for key, value in of_one.items())
        raise UsageError(
            f"{named}: which models are served is said by the [[models]] of the file already",
            hint="write it there, or leave [[models]] out of the file",
        )
    models = [dataclasses.replace(model, **of_all) for model in file.models]
    models = models or [ModelTable(**({"source": "mini"} | of_one | of_all))]
    return dataclasses.replace(
        file, server=dataclasses.replace(file.server, **server), models=models
    )


def _path_of_page(wanted: str | None, is_unwanted: bool) -> str | None:
    """Where the web page is to be; None if there is to be none, or its packages are missing."""
    from openglm.cli.output import console

    if is_unwanted and wanted is not None:
        raise UsageError("--web-path and --no-web exclude each other")
    if is_unwanted:
        return None
    if find_spec("gradio") is not None:
        return wanted or "/"
    hint = "pip install 'openglm[web]'"
    if wanted is not None:
        raise UsageError("the web page needs gradio, which is not installed", hint=hint)
    console.print(say(f"no web page: {hint}", f"没有网页：{hint}"), markup=False)
    return None


def _greet(models: str, address: str, page: str | None, keys: KeyStore, option: str) -> None:
    """Says where the server is, and the first key, once; `glm keys` needs the option for others."""
    from openglm.cli.output import console

    lines = [models, f"OpenAI: {address}/v1", f"BigModel: {address}/api/paas/v4"]
    if page is not None:
        lines.append(say(f"web page: {address}{page}", f"网页：{address}{page}"))
    for line in lines:  # programs read them in a log
        console.print(line, soft_wrap=True)
    if keys.list_keys():
        line = f"glm keys list{option}"
        console.print(say(f"keys: {line}", f"密钥：{line}"), soft_wrap=True, highlight=False)
        return
    key = keys.create("first", "admin")
    console.print(say("Your key, shown only now:", "您的密钥，仅显示这一次："))
    console.print(key, soft_wrap=True)
    example = f"curl {address}/v1/models -H 'Authorization: Bearer {key}'"
    console.print(example, soft_wrap=True, highlight=False)
