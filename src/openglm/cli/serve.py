"""`glm serve`: models behind an HTTP API, for existing OpenAI and BigModel clients."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openglm.cli import options
from openglm.cli.keys import DatabaseUrl
from openglm.cli.language import say
from openglm.errors import UsageError

if TYPE_CHECKING:
    from openglm.serve.keys import KeyStore

GIB = 1 << 30


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
    database: DatabaseUrl = None,
) -> None:
    """Loads the model and answers until Ctrl-C; the first time it makes a key and shows it."""
    try:
        from openglm.serve.app import create_app
        from openglm.serve.database import Database
        from openglm.serve.guard import GuardSettings
        from openglm.serve.keys import KeyStore
        from openglm.serve.origin import KnownNames
        from openglm.serve.server import Server
        from openglm.serve.settings import ServeSettings
    except ImportError as error:
        raise UsageError(
            f"serving needs packages that are not installed: {error}",
            hint="pip install 'openglm[serve]'",
        ) from error
    from openglm.loading import load

    loaded = load(model, dtype=dtype, device=device, tokenizer=tokenizer)
    served = name or Path(model).name
    engine: dict[str, Any] = {"memory_bytes": int(memory * GIB), "kv_dtype": kv_dtype}
    settings = ServeSettings(
        aliases=dict.fromkeys(alias or [], served),
        engine=engine | {"max_drafts": max_drafts},
        legacy=legacy,
        guard=GuardSettings(KnownNames(tuple(public_name or ()), tuple(origin or ()))),
    )
    state = Database(database)
    keys = KeyStore(state)
    app = create_app({served: loaded}, state, keys, settings)
    _greet(served, host, port, keys)
    Server(app, host, port, drain_seconds).run()


def _greet(model: str, host: str, port: int, keys: KeyStore) -> None:
    """Says where the server is, and the first key, once."""
    from openglm.cli.output import console

    address = f"http://{host}:{port}"
    console.print(f"{model}: {address}/v1 (OpenAI), {address}/api/paas/v4 (BigModel)")
    if keys.list_keys():
        console.print(say("keys: glm keys list", "密钥：glm keys list"))
        return
    key = keys.create("first", "admin")
    console.print(say("Your key, shown only now:", "您的密钥，仅显示这一次："))
    console.print(key, soft_wrap=True)
    example = f"curl {address}/v1/models -H 'Authorization: Bearer {key}'"
    console.print(example, soft_wrap=True, highlight=False)
