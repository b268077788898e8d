"""The command `pellucid`: finds the sub-command, and turns every way of ending into a status and at most one line.

Status 0: done. 1: it failed. 2: it was asked wrongly. 130: interrupted by Ctrl-C.
The files of the commands import what is heavy inside their functions, so that `--help` needs no torch.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

from pellucid.cli import (
    bench,
    best_of,
    chat,
    constitution,
    convert,
    data,
    demo,
    doctor,
    dpo,
    generate,
    grpo,
    ppo,
    prefer,
    pretrain,
    quantize,
    reward,
    serve,
    sft,
    show,
    tokenizer,
)
from pellucid.cli.timeline import Timeline, process_age
from pellucid.errors import PellucidError, did_you_mean

INTERRUPTED = 130  # 128 + SIGINT, as shells have it

START = "Start here"
MAKE = "Make"
LOOK = "Look and use"

app = typer.Typer(
    name="pellucid",
    help="Language models built, run and looked into, on one machine.",
    epilog="Example: pellucid chat smollm2 -p 'Name the capital of France.' --temperature 0",
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"pellucid {version('pellucid')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
    _debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; before or after the command.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        context.get_help()  # rich prints it


app.command(rich_help_panel=START)(demo.demo)
app.command(rich_help_panel=START)(chat.chat)
app.command(rich_help_panel=START)(doctor.doctor)
app.command(rich_help_panel=MAKE)(pretrain.pretrain)
app.command(rich_help_panel=MAKE)(sft.sft)
app.command(rich_help_panel=MAKE)(dpo.dpo)
app.command(rich_help_panel=MAKE)(reward.reward)
app.command(rich_help_panel=MAKE)(ppo.ppo)
app.command(rich_help_panel=MAKE)(grpo.grpo)
app.command(rich_help_panel=MAKE)(prefer.prefer)
app.command(rich_help_panel=MAKE)(constitution.constitution)
app.add_typer(data.app, name="data", rich_help_panel=MAKE)
app.command(rich_help_panel=LOOK)(generate.generate)
app.command(rich_help_panel=LOOK)(serve.serve)
app.command("best-of", rich_help_panel=LOOK)(best_of.best_of)
app.add_typer(bench.app, name="bench", rich_help_panel=LOOK)
app.command(rich_help_panel=LOOK)(show.show)
app.command(rich_help_panel=LOOK)(convert.convert)
app.command(rich_help_panel=LOOK)(quantize.quantize)
app.add_typer(tokenizer.app, name="tokenizer", rich_help_panel=LOOK)


def run(arguments: Sequence[str], age: float = 0.0) -> int:
    """Run `pellucid` with these arguments; the exit status. An error is one line on stderr, never raised.

    age: seconds that the process has taken to get here.
    """
    debug, arguments = take_debug(arguments)
    try:
        status = app(arguments, prog_name="pellucid", standalone_mode=False, obj=Timeline(age))
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output has gone: nothing to say, and nobody to say it to
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except PellucidError as error:
        return complain(str(error), error.exit_status, debug)
    except typer.TyperException as error:
        if not error.format_message():  # a group without a command: its help has been printed
            return 0
        return complain(usage(error), error.exit_code, debug)
    except typer.Abort:
        return complain("stopped", 1, debug)
    except OSError as error:
        return complain(str(error), 1, debug)
    except Exception as error:  # noqa: BLE001 (the edge: what nobody foresaw is a bug, and is called one)
        seen = f"{type(error).__name__}: {error}".splitlines()[0]
        return complain(f"this is a bug in pellucid ({seen}); add --debug to see the traceback", 1, debug)
    return status if isinstance(status, int) else 0


def take_debug(arguments: Sequence[str]) -> tuple[bool, list[str]]:
    """Whether `--debug` is among the arguments, wherever it stands before a `--`, and the other arguments."""
    border = arguments.index("--") if "--" in arguments else len(arguments)
    ours = [word for word in arguments[:border] if word != "--debug"]
    return len(ours) < border, [*ours, *arguments[border:]]


def usage(error: typer.TyperException) -> str:
    """What was asked wrongly, in one line, and which help says how to ask."""
    message = " ".join(error.format_message().split())
    if near := getattr(error, "possibilities", None):  # an option that does not exist, and those that look like it
        message = error.message + did_you_mean(getattr(error, "option_name", ""), near)
    context = getattr(error, "ctx", None)
    return f"{message} (see {context.command_path} --help)" if context else message


def complain(message: str, status: int, debug: bool) -> int:
    """Print the error (with its traceback under `--debug`) on stderr; return the status."""
    if debug:
        traceback.print_exc()
    print(f"error: {message}", file=sys.stderr)
    return status


def show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """A warning as one line of its own, without the place in our source that it came from."""
    print(f"warning: {message}", file=sys.stderr)


def main() -> None:
    """The entry point of the command line."""
    warnings.showwarning = show_warning
    sys.exit(run(sys.argv[1:], process_age()))
