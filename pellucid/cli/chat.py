"""`pellucid chat`: talk to a model, at a terminal or through a pipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pellucid.cli import running
from pellucid.cli.sampling import NOTHING, Sampling, sampling_flags
from pellucid.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from pellucid.cli.timeline import Timeline
    from pellucid.inference.conversation import Conversation
    from pellucid.inference.engine import Engine
    from pellucid.inference.events import Event
    from pellucid.inference.presets import Resolved

DEFAULT_PRESET = "balanced"
DEFAULTS = {"max_tokens": 1024}

HELP = """/reset                   forget the conversation
/system [TEXT]           show the system prompt, or set it and start anew
/params [NAME=VALUE ...] show every sampling parameter and where its value comes from, or set some
/help                    this
/quit                    leave (or Ctrl-D)
Ctrl-C stops an answer; a second one leaves. To say something that begins with a slash, put a space before it."""
COMMANDS = ("/reset", "/system", "/params", "/help", "/quit")


@sampling_flags("ignore_eos")
def chat(
    context: typer.Context,
    model: running.Model = "smollm2",
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="Answer this and end, instead of a conversation.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="The system prompt.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for each answer.")] = False,
    dtype: running.Dtype = "auto",
    quantize: running.Quantize = None,
    sampling: Sampling = NOTHING,
) -> None:
    """Talk to a model. Without -p, each line that is typed (or comes through a pipe) is a turn.

    Sampling is what the flags say, else the preset, else the model's own generation_config.json, else the preset
    balanced; /params shows which.

    Example: pellucid chat smollm2 -p "Name the capital of France." --temperature 0
    """
    from pellucid.inference.presets import resolve

    resolve(flags=sampling.values, preset_name=sampling.preset)  # a bad value is said before the model is loaded
    timeline: Timeline = context.obj
    engine = running.open_engine(model, dtype, timeline, quantize=quantize, max_sequences=1)
    talk = Talk(model, engine, sampling, system, as_json)
    if prompt is not None:
        talk.answer(prompt, timeline)
        running.note(timeline.line())
        return
    running.note(timeline.line())
    if sys.stdin.isatty():
        talk.at_terminal()
    else:
        talk.through_pipe(sys.stdin)


class Talk:
    """The conversation, and how it is shown."""

    def __init__(self, name: str, engine: Engine, sampling: Sampling, system: str | None, as_json: bool) -> None:
        from rich.console import Console

        from pellucid.inference.conversation import Conversation

        self.name, self.engine, self.sampling, self.as_json = name, engine, sampling, as_json
        self.changes: dict[str, Any] = {}  # what /params has set
        self.resolved = self.resolve()
        self.conversation: Conversation = Conversation(engine, self.resolved.params, system)
        self.console = Console(highlight=False)

    def resolve(self) -> Resolved:
        from pellucid.inference.presets import resolve

        return resolve(
            request=self.changes,
            flags=self.sampling.values,
            preset_name=self.sampling.preset,
            generation_config=self.engine.model.generation_config,
            default_preset=DEFAULT_PRESET,
            defaults=DEFAULTS,
        )

    def at_terminal(self) -> None:
        """Turns are typed. The first Ctrl-C stops an answer or warns; one more, with nothing between, leaves."""
        with suppress(ImportError):
            import readline  # noqa: F401 (gives `input` its history and editing keys; not on every system)

        running.note("/help shows the commands; Ctrl-D leaves")
        warned = False
        while True:
            try:
                line = input("> ")
                warned = False
                if self.turn(line) == "/quit":
                    return
            except InputError as error:
                self.console.print(f"error: {error}", style="red", markup=False)
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                print()
                if warned:
                    return
                warned = True
                running.note("stopped; Ctrl-C again leaves")

    def through_pipe(self, lines: Iterator[str]) -> None:
        """Each line is a turn; the first that is refused ends the program."""
        for line in lines:
            if self.turn(line.rstrip("\n")) == "/quit":
                return

    def turn(self, line: str) -> str | None:
        """Carry out a command (returned) or answer a line; an empty line is nothing."""
        if not line.startswith("/"):
            if line.strip():
                self.answer(line.strip())
            return None
        command, _, rest = line.partition(" ")
        if command not in COMMANDS:
            near = did_you_mean(command, COMMANDS)
            raise InputError(f"there is no command {command!r}{near}; /help lists them")
        if command == "/help":
            self.say(HELP)
        elif command == "/reset":
            self.conversation.reset()
            self.say("forgotten")
        elif command == "/system":
            self.set_system(rest.strip())
        elif command == "/params":
            self.set_params(rest.split())
        return command

    def set_system(self, text: str) -> None:
        if text:
            self.conversation.system = text
            self.conversation.reset()
        system = self.conversation.system
        self.say("no system prompt of yours; the model's template may add its own" if system is None else system)

    def set_params(self, assignments: list[str]) -> None:
        from pellucid.inference.params import SamplingParams

        changes = dict(self.changes)
        for assignment in assignments:
            name, equals, value = assignment.partition("=")
            if not equals or name not in SamplingParams.model_fields:
                near = did_you_mean(name, SamplingParams.model_fields)
                raise InputError(f"{assignment!r} sets no parameter{near}: write for example /params temperature=0.5")
            changes[name] = value
        self.changes, before = changes, self.changes
        try:
            self.resolved = self.resolve()
        except InputError:
            self.changes = before
            raise
        self.conversation.params = self.resolved.params
        self.show_params()

    def show_params(self) -> None:
        rows = self.resolved.as_json()
        if self.as_json:
            print(json.dumps({"params": rows}), flush=True)
            return
        for name, row in rows.items():
            value = "-" if row["value"] in (None, []) else str(row["value"])
            self.say(f"{name:20} {value:12} {row['source']}")

    def say(self, text: str) -> None:
        """What a command answers; beside the JSON there is no place for it but stderr."""
        print(text, file=sys.stderr if self.as_json else sys.stdout, flush=True)

    def answer(self, text: str, timeline: Timeline | None = None) -> None:
        """Answer a line, on stdout. timeline: of the start, if this is the first answer."""
        with closing(self.conversation.ask(text)) as asked:
            events = asked if timeline is None else timed(asked, timeline)
            if self.as_json:
                for _ in events:
                    pass
                print(json.dumps(self.report()), flush=True)
                return
            if self.console.is_terminal:
                from pellucid.cli.markdown import MarkdownStream

                with MarkdownStream(self.console) as shown:
                    for event in events:
                        shown.push(event.text)
            else:
                for event in events:
                    print(event.text, end="", flush=True)
                print(flush=True)
        running.note(self.cost())

    def report(self) -> dict[str, Any]:
        """The last answer for a script."""
        turn = self.conversation.last
        assert turn is not None
        return {
            "model": self.name,
            "answer": turn.text,
            "finish_reason": turn.finish_reason,
            "finish_detail": turn.finish_detail,
            "prompt_tokens": turn.prompt_tokens,
            "completion_tokens": len(turn.token_ids),
            "context_used": self.conversation.context_used,
            "context": self.engine.max_length,
            "first_token_seconds": turn.first_token_seconds,
            "seconds": turn.seconds,
            "tokens_per_second": turn.tokens_per_second,
            "seed": turn.seed,
            "params": self.resolved.as_json(),
        }

    def cost(self) -> str:
        """The last answer's length, speed and share of the context, in a line."""
        turn = self.conversation.last
        assert turn is not None
        rate = "" if turn.tokens_per_second is None else f"{turn.tokens_per_second:.1f} tokens/s, "
        ended = f", ended by {turn.finish_detail}" if turn.finish_reason == "length" else ""
        return (
            f"{len(turn.token_ids)} tokens, {rate}first after {turn.first_token_seconds:.2f} s, "
            f"context {self.conversation.context_used} of {self.engine.max_length}{ended}"
        )


def timed(events: Iterator[Event], timeline: Timeline) -> Iterator[Event]:
    """The same events; the first of them ends the start-up."""
    for event in events:
        timeline.end("first token")
        yield event
