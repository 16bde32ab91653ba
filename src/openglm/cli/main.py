"""`glm`: the entry point. Errors are one line with a hint and an exit code of their own.

Exit codes: 0 success, 1 unexpected, 2 usage, 3 configuration, 4 checkpoint, 5 tokenizer, 6 data,
7 request, 8 training stopped, 9 verification failed, 10 download, 130 interrupted.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback

import typer

from openglm import __version__
from openglm.cli import (
    attack,
    bench,
    chat,
    convert,
    demo,
    doctor,
    download,
    fill,
    finetune,
    generate,
    info,
    keys,
    plan,
    pretrain,
    quantize,
    serve,
    verify,
)
from openglm.cli.language import say
from openglm.errors import OpenGLMError

app = typer.Typer(
    name="glm",
    help=say(
        "openglm: run and train the GLM family. MODEL is `mini` by default.",
        "openglm：运行和训练 GLM 系列模型。MODEL 默认为 `mini`。",
    ),
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    pretty_exceptions_enable=False,
)
for module in (
    demo,
    fill,
    generate,
    chat,
    info,
    plan,
    download,
    doctor,
    bench,
    verify,
    convert,
    quantize,
    pretrain,
    finetune,
    serve,
    keys,
    attack,
):
    module.register(app)


@app.callback()
def _root(
    debug: bool = typer.Option(
        False, "--debug", help=say("Show the traceback of an error.", "出错时显示调用栈。")
    ),
) -> None:
    """Declares the options of `glm` itself; `main` reads them, wherever they stand."""


@app.command(help=say("Show the version.", "显示版本。"))
def version() -> None:
    """Prints the version."""
    typer.echo(f"openglm {__version__}")


def main() -> None:
    """Runs the command line and exits."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that lacks a character shows its code
            stream.reconfigure(errors="backslashreplace")
    arguments = sys.argv[1:] or ["--help"]
    if arguments == ["--version"]:
        arguments = ["version"]
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    debug = "--debug" in own
    if debug:
        arguments.remove("--debug")
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING, format="%(levelname)s: %(message)s"
    )
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(_run(arguments, debug))


def _terminate(number: int, frame: object) -> None:
    """Ends as after an error, so that unfinished folders are removed."""
    sys.exit(128 + number)


def _run(arguments: list[str], debug: bool) -> int:
    try:
        return int(app(arguments, standalone_mode=False) or 0)
    except OpenGLMError as error:
        return _fail(error, error.message, error.hint, error.exit_code, debug)
    except (KeyboardInterrupt, typer.Abort):
        typer.echo(say("interrupted", "已中断"), err=True)
        return 130
    except BrokenPipeError:  # the reader of our output went away, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except typer.Exit as exit_:
        return int(exit_.exit_code)
    except OSError as error:  # a full disk, a missing permission
        return _fail(error, str(error), "", 1, debug)
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error found by the option parser
            verbs = {command.name for command in app.registered_commands}
            verbs |= {group.name for group in app.registered_groups}
            verb = f"{arguments[0]} " if arguments and arguments[0] in verbs else ""
            return _fail(error, error.format_message(), f"glm {verb}--help", 2, debug)
        return _fail(
            error,
            f"{type(error).__name__}: {error}",
            say(
                "this is a bug: run again with --debug and report it",
                "这是缺陷，请加 --debug 后报告",
            ),
            1,
            debug,
        )


def _fail(error: BaseException, message: str, hint: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    typer.echo(typer.style(say("error: ", "错误："), fg="red", bold=True) + message, err=True)
    if hint:
        typer.echo(typer.style(say("hint: ", "提示："), fg="cyan") + hint, err=True)
    return code
