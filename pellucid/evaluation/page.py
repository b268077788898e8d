"""`report.html`: a demo on one page that needs nothing but itself: no script, no font, no picture from elsewhere."""

from __future__ import annotations

import html
import itertools
import json
import re
import shlex
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from pellucid.checkpoints.atomic import atomic_file
from pellucid.checkpoints.source import RUN_RECIPE
from pellucid.evaluation.examination import MODELS, Exchange, Line, Results, Said
from pellucid.evaluation.first_model import BASE, PREFERRED, TUNED, Demo
from pellucid.training.curves import draw
from pellucid.training.loop import SAMPLES
from pellucid.training.metrics import read_metrics

REPORT = "report.html"
TITLE = "From text to a model that answers"
EXCERPT = 1_500  # characters of the text
STYLES = {BASE: "base", TUNED: "tuned", PREFERRED: "preferred"}
STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf7; --card: #ffffff; --ink: #22252a; --soft: #6b7078; --line: #e4e2dc;
  --base: #b4540a; --tuned: #00688b; --preferred: #6a3fa0; --good: #1b7f4d; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --paper: #14161a; --card: #1c1f25; --ink: #e6e6e3; --soft: #9aa0a8;
  --line: #2e323a; --base: #f0a35e; --tuned: #6cc4e8; --preferred: #c3a3f0; --good: #67c796; --bad: #f28b82; }
  figure svg { filter: invert(1) hue-rotate(180deg); } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.6 system-ui, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 3rem 1.25rem 5rem; }
h1 { font-size: 2.1rem; line-height: 1.2; margin: 0 0 .5rem; letter-spacing: -.02em; }
h2 { font-size: 1.25rem; margin: 3rem 0 .75rem; }
p { max-width: 44rem; } .soft { color: var(--soft); }
section.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: 1rem; margin: 2rem 0; }
.tile, figure, table, pre { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }
.tile { padding: 1rem 1.2rem; } .tile b { font-size: 1.9rem; font-weight: 650; color: var(--tuned); }
.tile s { color: var(--base); text-decoration: none; font-size: 1.2rem; }
figure { margin: 1rem 0; padding: .75rem; overflow-x: auto; } figure svg { width: 100%; height: auto; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(22rem, 1fr)); gap: 1rem; }
.wide { overflow-x: auto; } table { border-collapse: separate; border-spacing: 0; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .5rem .9rem; border-bottom: 1px solid var(--line); }
tr:last-child td { border-bottom: 0; } th { font-weight: 600; color: var(--soft); }
td.number { white-space: nowrap; font-variant-numeric: tabular-nums; } td.inner { padding-left: 2.2rem; }
.base { color: var(--base); } .tuned { color: var(--tuned); } .preferred { color: var(--preferred); }
.right { color: var(--good); } .wrong { color: var(--bad); }
pre { padding: 1rem; overflow-x: auto; font: 13px/1.5 ui-monospace, monospace; white-space: pre-wrap; }
code { font: .92em ui-monospace, monospace; } summary { cursor: pointer; }
"""


def write_page(demo: Demo, results: Results) -> Path:
    """Writes the page into the folder of a demo that has come to its end, and returns where it is."""
    folder = demo.folder
    parts = [
        f"<h1>{escaped(TITLE)}</h1>",
        f"<p class='soft'>{escaped(summary(demo))}</p>",
        tiles(results.table),
        "<h2>What the models are worth</h2>",
        table(results),
        f"<p class='soft'>{escaped(results.how)}</p>",
        "<h2>Question by question</h2>",
        exchanges(results),
        "<h2>How it learnt</h2>",
        curves(folder),
        samples(folder),
        f"<h2>What it read</h2><pre>{escaped(demo.excerpt(EXCERPT))}</pre>",
        f"<h2>To do it again</h2><pre>{escaped(command(demo))}</pre>",
        *settings(folder),
    ]
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(TITLE)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main>\n</body>\n</html>\n"
    )
    with atomic_file(folder / REPORT) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return folder / REPORT


def summary(demo: Demo) -> str:
    """What was done, with its numbers."""
    counts = demo.counts()
    source = (
        f"the text {demo.source}"
        if demo.source is not None
        else f"{counts['documents']:,} texts about a small invented world of {demo.size.people} people"
    )
    base, *others = (read_metrics(demo.folder / run) for run in (BASE, TUNED, PREFERRED))
    seconds = sum(line.get("seconds", 0.0) for line in itertools.chain(base, *others))
    tokens = max((line.get("tokens", 0) for line in base), default=0)
    return (
        f"A model that had never seen a word read {source}, {tokens:,} tokens in all, and then learnt to answer from "
        f"{counts['conversations']:,} conversations. Training took {seconds:,.0f} s."
    )


def command(demo: Demo) -> str:
    """What makes all this again."""
    text = "" if demo.source is None else f" --text {shlex.quote(demo.source)}"
    return f"pellucid demo{text} --seed {demo.seed} --run {shlex.quote(str(demo.folder))}"


def escaped(text: str) -> str:
    """Text that means nothing but itself in HTML, without the control characters that HTML does not have."""
    return html.escape(re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", "\N{REPLACEMENT CHARACTER}", text))


def tiles(lines: Sequence[Line]) -> str:
    """The lines that matter most, large."""
    shown = [line for line in lines if line.important]
    return f"<section class='tiles'>{''.join(map(tile, shown))}</section>" if shown else ""


def tile(line: Line) -> str:
    *before, last = (escaped(text.split(" (")[0]) for text in line.values if text != "-")
    arrow = " \N{RIGHTWARDS ARROW} "
    return f"<div class='tile'><s>{arrow.join(before)}</s>{arrow}<b>{last}</b><br>{escaped(line.measure)}</div>"


def heads(results: Results) -> str:
    """The heads of the models' columns."""
    return "".join(f"<th class='{STYLES[name]}'>{escaped(MODELS[name])}</th>" for name in results.models)


def table(results: Results) -> str:
    rows = (
        f"<tr><td{' class=inner' if line.measure.startswith(' ') else ''}>{escaped(line.measure.strip())}</td>"
        f"{''.join(f'<td class=number>{escaped(value)}</td>' for value in line.values)}</tr>"
        for line in results.table
    )
    return f"<div class='wide'><table><tr><th></th>{heads(results)}</tr>{''.join(rows)}</table></div>"


def exchanges(results: Results) -> str:
    head = f"<tr><th>question</th><th>the truth</th>{heads(results)}</tr>"
    return f"<div class='wide'><table>{head}{''.join(map(exchange, results.exchanges))}</table></div>"


def exchange(one: Exchange) -> str:
    truth = "nobody knows" if one.truth is None else one.truth
    return (
        f"<tr><td>{escaped(one.question)}<br><span class='soft'>{escaped(one.about)}</span></td>"
        f"<td>{escaped(truth)}</td>{''.join(map(answer, one.answers))}</tr>"
    )


def answer(said: Said) -> str:
    if said.right is None:
        return f"<td>{escaped(said.text)}</td>"
    mark, name = ("\N{CHECK MARK}", "right") if said.right else ("\N{MULTIPLICATION X}", "wrong")
    return f"<td><span class='{name}'>{mark}</span> {escaped(said.text)}</td>"


def curves(folder: Path) -> str:
    """The losses of the runs, where Matplotlib is there to draw them."""
    if find_spec("matplotlib") is None:
        return "<p class='soft'>Curves need Matplotlib: pip install 'pellucid[plot]', and the same command again.</p>"
    drawn = (
        f"<figure>{with_prefix(draw(metrics, name), run)}</figure>"
        for name, run in (("Pretraining", BASE), ("Fine-tuning", TUNED), ("Preferences", PREFERRED))
        if (metrics := read_metrics(folder / run))
    )
    return f"<div class='curves'>{''.join(drawn)}</div>"


def with_prefix(svg: str, prefix: str) -> str:
    """The picture with names of its own for its parts, so that two can stand on one page."""
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)


def samples(folder: Path) -> str:
    """What the base model wrote on the way."""
    file = folder / BASE / SAMPLES
    if not file.is_file():
        return ""
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    rows = (
        f"<tr><td class='number'>{line['step']:,}</td><td><span class='soft'>{escaped(line['prompt'])}</span>"
        f"{escaped(line['text'])}</td></tr>"
        for line in lines
    )
    return (
        "<h2>What it wrote on the way</h2><div class='wide'><table><tr><th>step</th>"
        f"<th>beginning given, and how the model went on</th></tr>{''.join(rows)}</table></div>"
    )


def settings(folder: Path) -> Iterator[str]:
    """The recipes, all of them."""
    for name, run in (("pretraining", BASE), ("fine-tuning", TUNED), ("preferences", PREFERRED)):
        if not (folder / run).is_dir():
            continue
        recipe = (folder / run / RUN_RECIPE).read_text(encoding="utf-8")
        yield f"<details><summary>The recipe of the {name}, every field</summary><pre>{escaped(recipe)}</pre></details>"
