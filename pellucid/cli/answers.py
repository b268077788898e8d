"""`pellucid demo --model`: a real model answers three questions, and shows how."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from pellucid.cli import running

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from pellucid.cli.timeline import Timeline
    from pellucid.inference.engine import Engine
    from pellucid.inference.events import Event
    from pellucid.tokenizer.tokenizer import Tokenizer

OPENED = "Name the capital of France."  # the one that is looked into at every step
OTHERS = (  # question, temperature, what it shows
    ("Name three fruits.", 0.0, "temperature 0 takes the most likely token: the same answer every time"),
    ("Write one sentence about the sea.", 0.9, "temperature 0.9 draws by chance, here with seed 7: others give others"),
)
SEED = 7
MAX_TOKENS = 48
BAR = 20  # characters of a probability of 1
WIDTH = 100


class Answer(NamedTuple):
    """An answer and what it cost. read: tokens of the prompt that the model computed, those that it knew left out."""

    events: list[Event]
    read: int
    first_token_seconds: float
    seconds: float


def show_answers(model: str, timeline: Timeline) -> None:
    """Three questions to a model: what it reads, what it writes, and how sure it is of each token."""
    engine = running.open_engine(model, "auto", timeline, max_sequences=1)
    from rich.console import Console

    console = Console(highlight=False)
    console.width = min(console.width, WIDTH)
    answers = [open_up(console, engine)]
    for question, temperature, remark in OTHERS:
        answers.append(ask(console, engine, question, temperature, remark))
    account(console, model, engine, answers)


def open_up(console: Console, engine: Engine) -> Answer:
    """The first question, step by step."""
    from rich.text import Text

    tokenizer = engine.tokenizer
    heading(console, "1", f"The question: {OPENED}")
    chat = tokenizer.apply_chat_template([{"role": "user", "content": OPENED}], add_generation_prompt=True)
    explain(console, "The model's own chat template puts it between control tokens (marked), which no text can forge:")
    console.print(as_read(tokenizer, chat.ids), soft_wrap=True)
    explain(console, f"The model reads numbers. These are its {len(chat.ids)} tokens and their ids:")
    console.print(as_pieces(tokenizer, chat.ids))

    heading(console, "2", "The answer, a token at a time")
    explain(console, f"Each step gives all {engine.vocab_size} tokens a probability; the most likely one is taken:")
    answer = run(engine, chat.ids, 0.0, lambda event: console.print(step_row(tokenizer, event)))
    console.print(Text("".join(event.text for event in answer.events).strip(), style="bold"))

    unsure = min(answer.events, key=lambda event: event.logprob or 0.0)
    explain(
        console, f"It was least sure of {visible(tokenizer.decode([unsure.token_id]))}. What else it weighed there:"
    )
    for token, logprob in unsure.alternatives:
        chosen = "bold" if token == unsure.token_id else ""
        console.print(bar_row(tokenizer.decode([token]), math.exp(logprob), chosen))
    return answer


def ask(console: Console, engine: Engine, question: str, temperature: float, remark: str) -> Answer:
    """A further question: the answer as it comes, each token in the colour of its probability."""
    from rich.text import Text

    heading(console, "?", question)
    explain(console, f"{remark}.")
    ids = engine.tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True).ids
    answer = run(engine, ids, temperature, lambda event: console.print(Text(event.text, colour(event)), end=""))
    console.print()
    surprise = -sum(event.logprob or 0.0 for event in answer.events) / len(answer.events)
    explain(
        console, f"{len(answer.events)} tokens; on average the one drawn had probability {math.exp(-surprise):.0%}."
    )
    return answer


def run(engine: Engine, ids: list[int], temperature: float, show: Any) -> Answer:
    """Generate, giving each event to `show` as it comes."""
    from pellucid.inference.output import stream
    from pellucid.inference.params import SamplingParams

    params = SamplingParams(temperature=temperature, max_tokens=MAX_TOKENS, logprobs=5, seed=SEED)
    events: list[Event] = []
    started, known = time.perf_counter(), engine.tokens_read
    first, read = 0.0, 0
    for event in stream(engine, ids, params, in_chat=True):
        if not events:
            first, read = time.perf_counter() - started, engine.tokens_read - known
        events.append(event)
        show(event)
    return Answer(events, read, first, time.perf_counter() - started)


def account(console: Console, name: str, engine: Engine, answers: list[Answer]) -> None:
    """What it cost, in time and memory."""
    from pellucid.inference.room import bytes_a_token
    from pellucid.operations.ceilings import measure_ceilings

    heading(console, "=", "What it cost")
    read = sum(answer.read for answer in answers) / sum(answer.first_token_seconds for answer in answers)
    after = sum(answer.seconds - answer.first_token_seconds for answer in answers)
    written = sum(len(answer.events) - 1 for answer in answers) / after
    config, dtype = engine.model.config, engine.model.dtype
    parameters = sum(parameter.numel() for parameter in model_parameters(config))
    per_token = bytes_a_token(config, dtype)
    memory = measure_ceilings(precisions=()).memory_read
    bytes_a_step = sum(held.numel() * held.element_size() for held in engine.model.state_dict().values())
    lines = (
        ("reading", f"{read:.0f} tokens/s (a prompt is read all at once: bound by arithmetic)"),
        ("writing", f"{written:.1f} tokens/s (one at a time, all weights for each: bound by memory)"),
        (
            "the limit",
            f"{memory * 1e9 / bytes_a_step:.0f} tokens/s, if memory gives {memory:.0f} GB/s as just measured",
        ),
        (
            "weights",
            f"{parameters / 1e6:.0f} million numbers in {bytes_a_step / 2**20:.0f} MiB, computed with in "
            f"{str(dtype).removeprefix('torch.')}",
        ),
        ("cache", f"{per_token / 1024:.0f} KiB for each token of the conversation, {config.max_positions} at most"),
    )
    for what, text in lines:
        console.print(f"  [bold]{what:10}[/bold] {text}")
    explain(console, f"Go on: pellucid chat {name}, pellucid show {name}, pellucid tokenizer compare {name} --text ...")


def model_parameters(config: Any) -> Any:
    """The parameters as the config describes them, without memory: in a model they may lie in blocks of integers."""
    import torch

    from pellucid.models.decoder import Decoder

    with torch.device("meta"):
        return list(Decoder(config).parameters())


def heading(console: Console, mark: str, text: str) -> None:
    console.print()
    console.rule(f"[bold]{mark}[/bold]  {text}", align="left", style="dim")


def explain(console: Console, text: str) -> None:
    from rich.text import Text

    console.print(Text(text, style="dim"))


def pieces(tokenizer: Tokenizer, ids: list[int]) -> list[tuple[int, str]]:
    """Each id with the text that became certain with it."""
    decoder = tokenizer.stream_decoder()
    return [(token, decoder.push(token)) for token in ids]


def as_read(tokenizer: Tokenizer, ids: list[int]) -> Text:
    """The text that the model reads, control tokens marked."""
    from rich.text import Text

    control = set(tokenizer.special_tokens.values())
    parts = ((piece, "bold magenta" if token in control else "") for token, piece in pieces(tokenizer, ids))
    return Text.assemble(*parts)


def as_pieces(tokenizer: Tokenizer, ids: list[int]) -> Text:
    """Tokens and ids, a space shown as a dot."""
    from rich.text import Text

    control = set(tokenizer.special_tokens.values())
    text = Text()
    for token, piece in pieces(tokenizer, ids):
        text.append(visible(piece).replace(" ", "·"), "bold magenta" if token in control else "cyan")
        text.append(f" {token}", "dim")
        text.append("  ")
    return text


def visible(piece: str) -> str:
    """A piece of text in which line ends and spaces can be seen."""
    return piece.replace("\n", "⏎").replace(" ", "·") or "(half a character)"


def step_row(tokenizer: Tokenizer, event: Event) -> Text:
    """A token, its probability, and what came next to it."""
    row = bar_row(tokenizer.decode([event.token_id]), math.exp(event.logprob or 0.0), colour(event))
    others = [(token, value) for token, value in event.alternatives if token != event.token_id][:2]
    listed = ", ".join(f"{visible(tokenizer.decode([token]))} {math.exp(value):.0%}" for token, value in others)
    return row.append(f"  then {listed}", "dim")


def bar_row(piece: str, chance: float, style: str) -> Text:
    from rich.text import Text

    bar = "█" * round(chance * BAR)
    return Text.assemble(f"  {visible(piece):16}", (f"{chance:6.1%} ", style), (f"{bar:{BAR}}", style or "dim"))


def colour(event: Event) -> str:
    """Green for a sure token, yellow for a likely one, red for an unlikely one."""
    chance = math.exp(event.logprob or 0.0)
    return "green" if chance > 0.7 else "yellow" if chance > 0.2 else "red"
