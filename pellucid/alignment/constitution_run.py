"""Constitutional AI, both phases (Bai et al. 2022, "Constitutional AI: Harmlessness from AI Feedback").

Phase 1, supervised (section 3): the model answers prompts that tempt it to do harm, criticises and revises its answers
by principles drawn from the constitution, and is fine-tuned on the last revisions, and on its own answers to harmless
prompts so that it stays helpful.
Phase 2, from AI feedback (section 4): the model of phase 1 answers twice, a judge prefers one of the two by a
principle, and the model learns from these preferences: with DPO (Rafailov et al. 2023), or as in the paper, where a
reward model learns from them and PPO from that.

Left out: examples that show the model how to criticise, reasoning before the letter, soft targets of the preferences.
Every stage has its folder, and one that is done is not made again: see `constitution_files`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from pellucid.alignment import constitution_measure as measuring
from pellucid.alignment import world_rules
from pellucid.alignment.candidates import Prompt
from pellucid.alignment.constitution import Constitution
from pellucid.alignment.constitution_files import (
    CRITIQUES,
    GENERATION,
    JUDGEMENTS,
    PROMPTS,
    REPORT,
    TRANSCRIPTS,
    begin,
    kept,
    settle,
    write_lines,
)
from pellucid.alignment.constitution_measure import Measure
from pellucid.alignment.constitution_prompts import Prompts, prompts_of
from pellucid.alignment.constitution_recipe import ConstitutionRecipe, WorldRecipe
from pellucid.alignment.constitution_report import write_report
from pellucid.alignment.critique import Critic, Draft, Judge, Judgement, Pair, Voice, assistant, check_room
from pellucid.alignment.dpo_run import learn_preferences
from pellucid.alignment.ppo import train_ppo
from pellucid.alignment.reward import train_reward_model
from pellucid.alignment.sft import fine_tune
from pellucid.alignment.templates import with_template
from pellucid.checkpoints.describe import describe
from pellucid.checkpoints.load import load
from pellucid.checkpoints.source import FINAL
from pellucid.data.order import random_number
from pellucid.data.tinyworld.harm import obeying
from pellucid.errors import PellucidError
from pellucid.operations.hardware import best_precision, use_best_threads
from pellucid.training.loop import Outcome
from pellucid.training.recipe import Recipe

Say = Callable[[str], None]
OBEYING, BASE, SFT = "obeying", "base", "sft"  # models, and the folders of those that are trained
SEEDS = 2**62


@dataclass(frozen=True, slots=True)
class Ended:
    """measured: of the models that there are, by name ("base", "sft", "dpo" or "ppo").

    signal: what stopped the run, if anything did; the same command goes on then.
    """

    measured: dict[str, list[Measure]]
    signal: int | None = None


def constitute(recipe: ConstitutionRecipe, *, say: Say = print) -> Ended:
    """Runs the recipe, or goes on with it where its run folder has got to. say: is told what is done, a line each.

    Raises `InputError` for what is wrong with the recipe, the constitution or the prompts, before anything is trained.
    """
    path, constitution, held = begin(recipe)
    try:
        prompts = prompts_of(recipe)
        settle(path / PROMPTS, prompts.digests())
        run = Run(recipe, path, constitution, prompts, say)
        run.check_room()
        ended = run.through()
        write_report(path)
        return ended
    finally:
        held.close()


@dataclass(frozen=True, slots=True)
class Run:
    """A run under way in the folder `path`."""

    recipe: ConstitutionRecipe
    path: Path
    constitution: Constitution
    prompts: Prompts
    say: Say

    def through(self) -> Ended:
        """All stages, or those that are left."""
        recipe, base = self.recipe, self.recipe.base
        found: dict[str, list[Measure]] = {}
        if recipe.world is not None and recipe.world.obeying is not None:
            taught = recipe.sft_stage(OBEYING, recipe.world.obeying, base, str(self.obey(recipe.world)))
            if signal := self.trained(taught, lambda: fine_tune(taught, say=self.say)[0]):
                return Ended(found, signal)
            base = taught.run
        found[BASE] = self.measure(BASE, base, base)
        tuning = recipe.sft_stage(SFT, recipe.sft, base, str(self.revise(base)))
        if signal := self.trained(tuning, lambda: fine_tune(tuning, say=self.say)[0]):
            return Ended(found, signal)
        found[SFT] = self.measure(SFT, tuning.run, base)
        learning = self.from_preferences(tuning.run, self.prefer(tuning.run, base))
        for stage, learn in learning:
            if signal := self.trained(stage, learn):
                return Ended(found, signal)
        last = learning[-1][0].run
        found[Path(last).name] = self.measure(Path(last).name, last, base)
        return Ended(found)

    def obey(self, world: WorldRecipe) -> Path:
        """The conversations of a model that does whatever it is asked."""
        file = self.path / "obedience" / "conversations.jsonl"
        return file if file.is_file() else write_lines(file, list(obeying(world.made, self.recipe.seed)))

    def from_preferences(self, tuned: str, preferences: Path) -> list[tuple[Recipe, Callable[[], Outcome]]]:
        """What is trained in phase 2, in order: the recipe and how it runs. The last one is the model."""
        recipe, say = self.recipe, self.say
        if recipe.dpo is not None:
            dpo = recipe.dpo_stage(tuned, str(preferences))
            return [(dpo, lambda: learn_preferences(dpo, say=say)[0])]
        asked = preferences.with_name("prompts.jsonl")
        if not asked.is_file():
            prompts = [*self.prompts.red_team, *self.prompts.helpful]
            write_lines(asked, [{"prompt": list(prompt.messages)} for prompt in prompts])
        reward, ppo = recipe.reward_stage(tuned, str(preferences)), recipe.ppo_stage(tuned, str(asked))
        return [
            (reward, lambda: train_reward_model(reward, say=say)[0]),
            (ppo, lambda: train_ppo(ppo, say=say)[0]),
        ]

    def trained(self, stage: Recipe, train: Callable[[], Outcome]) -> int | None:
        """Trains a stage that is not done yet; the signal that stopped it, if one did."""
        folder = Path(stage.run).expanduser()
        if (folder / FINAL).is_dir() and (folder / REPORT).is_file():
            return None
        self.say(f"{Path(stage.run).name}: training")
        return train().signal

    def voice(self, name: str, *, greedy: bool = False) -> Voice:
        """A model to be asked; greedy: it takes the most likely token at every step."""
        answers = self.recipe.answers
        model, tokenizer = load(name, dtype=self.precision())
        return Voice(model, tokenizer, answers.max_tokens, 0.0 if greedy else answers.temperature, answers.together)

    def precision(self) -> str:
        """That of all that is generated; threads are set. Both are as they were when the run first generated."""
        file = self.path / GENERATION
        if file.is_file():
            chosen = yaml.safe_load(file.read_text(encoding="utf-8"))
            torch.set_num_threads(chosen["threads"])
        else:
            chosen = {"precision": best_precision(self.recipe.precision).name, "threads": use_best_threads().count}
            settle(file, chosen)
        return str(chosen["precision"])

    def check_room(self) -> None:
        """`InputError`, before anything runs, for a prompt that leaves a model no room to criticise or to judge."""
        recipe, prompts = self.recipe, self.prompts
        if recipe.rules_criticise and recipe.rules_judge:
            return
        base = describe(recipe.base)
        tokenizer, longest = with_template(base.tokenizer), base.config.max_positions
        judged = [*prompts.red_team, *prompts.helpful]
        if recipe.world is None:
            judged += [one.prompt for one in prompts.held_out]
        for some, judging in ((prompts.red_team, False), (judged, True)):
            if not (recipe.rules_judge if judging else recipe.rules_criticise):
                check_room(tokenizer, longest, recipe.answers.max_tokens, some, self.constitution, judging=judging)

    def seed(self, *about: str | int) -> int:
        return random_number(SEEDS, "constitution", self.recipe.seed, *about)

    # Phase 1

    def revise(self, base: str) -> Path:
        """Answers of `base`, criticised and revised, and its answers to harmless prompts: conversations to learn."""
        folder = self.path / CRITIQUES
        file = folder / "conversations.jsonl"
        if file.is_file():
            return file
        voice = self.voice(base)
        critic: Critic = world_rules.criticise if self.recipe.rules_criticise else voice.critique

        def revised(prompts: Sequence[Prompt], start: int) -> Iterator[dict[str, Any]]:
            return self.revised(prompts, start, voice, critic)

        def answered(prompts: Sequence[Prompt], start: int) -> Iterator[dict[str, Any]]:
            seeds = [self.seed("helpful", start + place) for place in range(len(prompts))]
            said = voice.say([prompt.messages for prompt in prompts], seeds)
            for prompt, one in zip(prompts, said, strict=True):
                yield {"prompt": list(prompt.messages), "answer": one.text, "cut": one.cut}

        together = self.recipe.answers.together
        transcripts = kept(
            folder / TRANSCRIPTS, self.prompts.red_team, revised, together, self.tell("answers, critiques, revisions")
        )
        helpful = kept(folder / "helpful.jsonl", self.prompts.helpful, answered, together, self.tell("helpful answers"))
        said = [(one["prompt"], one["revised"]) for one in transcripts]
        said += [(one["prompt"], one["answer"]) for one in helpful]
        records = [{"messages": [*prompt, assistant(text)]} for prompt, text in said if text]
        self.say(
            f"{CRITIQUES}: {len(records):,} conversations to learn from, {len(said) - len(records):,} empty ones left "
            f"out; {sum(one.get('cut', False) for one in (*transcripts, *helpful)):,} answers do not end within "
            f"answers.max_tokens = {self.recipe.answers.max_tokens}, and are learnt as if they did"
        )
        return write_lines(file, records)

    def revised(self, prompts: Sequence[Prompt], start: int, voice: Voice, critic: Critic) -> Iterator[dict[str, Any]]:
        """The transcript of each prompt: its first answer, the rounds, and what came of it."""
        numbers = range(start, start + len(prompts))
        first = voice.say([prompt.messages for prompt in prompts], [self.seed("answer", number) for number in numbers])
        now, cut = [one.text for one in first], [one.cut for one in first]
        rounds: list[list[dict[str, str]]] = [[] for _ in prompts]
        drawn = [list(self.constitution.drawn(self.recipe.rounds, self.recipe.seed, number)) for number in numbers]
        for turn in range(self.recipe.rounds):
            drafts = [
                Draft(prompt, now[place], drawn[place][turn], self.seed("round", turn, numbers[place]))
                for place, prompt in enumerate(prompts)
            ]
            for place, revision in enumerate(critic(drafts)):
                if revision.answer and revision.answer != now[place]:  # one that revises to nothing has not revised
                    now[place], cut[place] = revision.answer, revision.cut
                rounds[place].append(
                    {"principle": drawn[place][turn].name, "critique": revision.critique, "revision": now[place]}
                )
        for place, prompt in enumerate(prompts):
            yield {
                "prompt": list(prompt.messages), **prompt.columns, "answer": first[place].text, "rounds": rounds[place],
                "revised": now[place], "cut": cut[place],
            }  # fmt: skip

    # Phase 2

    def prefer(self, tuned: str, base: str) -> Path:
        """Pairs of answers of `tuned`, judged: preferences to learn from."""
        folder = self.path / JUDGEMENTS
        file = folder / "preferences.jsonl"
        if file.is_file():
            return file
        voice = self.voice(tuned)
        judge = self.judge(base)
        prompts = [*self.prompts.red_team, *self.prompts.helpful] * self.recipe.pairs

        def judged(some: Sequence[Prompt], start: int) -> Iterator[dict[str, Any]]:
            return self.judged(some, start, voice, judge)

        records = kept(folder / TRANSCRIPTS, prompts, judged, self.recipe.answers.together, self.tell("judgements"))
        pairs = [preference(record) for record in records if record["probability"] is not None]
        decided = [pair for pair in pairs if pair is not None]
        alike = len(records) - len(pairs)
        self.say(
            f"{JUDGEMENTS}: {len(decided):,} preferences; {alike:,} times no two different answers, "
            f"{len(pairs) - len(decided):,} pairs without a preference"
        )
        if not decided:
            raise PellucidError(
                f"the judge preferred no answer to another in {len(records)} prompts: give more prompts, a larger "
                "draws, or a higher answers.temperature"
            )
        return write_lines(file, decided)

    def judge(self, base: str) -> Judge:
        """Who judges. The base itself, so that all models are judged by the same one."""
        if self.recipe.rules_judge:
            return world_rules.judge
        return self.voice(base, greedy=True).judge

    def judged(self, prompts: Sequence[Prompt], start: int, voice: Voice, judge: Judge) -> Iterator[dict[str, Any]]:
        """The transcript of each prompt: two answers that differ, and how likely the first is better by a principle."""
        draws = self.recipe.draws
        chats = [prompt.messages for prompt in prompts for _ in range(draws)]
        seeds = [self.seed("draw", start + place, draw) for place in range(len(prompts)) for draw in range(draws)]
        said = [one.text for one in voice.say(chats, seeds)]
        drawn = [list(dict.fromkeys(filter(None, said[at : at + draws]))) for at in range(0, len(said), draws)]
        principles = [
            next(self.constitution.drawn(1, self.recipe.seed, "judge", start + place)) for place in range(len(prompts))
        ]
        found = iter(
            judge(
                [
                    Pair(prompt, answers[0], answers[1], principle)
                    for prompt, answers, principle in zip(prompts, drawn, principles, strict=True)
                    if len(answers) > 1
                ]
            )
        )
        for prompt, answers, principle in zip(prompts, drawn, principles, strict=True):
            record = {
                "prompt": list(prompt.messages),
                **prompt.columns,
                "answers": answers[:2],
                "principle": principle.name,
            }
            yield {**record, **(as_record(next(found)) if len(answers) > 1 else {"probability": None})}

    def measure(self, name: str, model: str, base: str) -> list[Measure]:
        """Help and harm of a model, measured or remembered."""
        found = measuring.saved(self.path, name)
        if found is None:
            self.say(f"measuring {name}: {len(self.prompts.held_out):,} prompts that nothing is learnt from")
            asked = self.prompts.held_out
            answers = self.voice(model, greedy=True).say([one.prompt.messages for one in asked], [0] * len(asked))
            said = [one.text for one in answers]
            if self.recipe.world is not None:
                found = list(measuring.count(asked, said))
            else:
                before = said if name == BASE else measuring.saved_answers(self.path, BASE)
                judge: Judge = (lambda _: []) if name == BASE else self.judge(base)  # the base equals itself
                found = list(measuring.compare(asked, said, before, judge, self.constitution))
            measuring.save(self.path, name, asked, said, found)
        return found

    def tell(self, what: str) -> Callable[[int, int], None]:
        return lambda done, of: self.say(f"{what}: {done:,} of {of:,}")


def as_record(judgement: Judgement) -> dict[str, Any]:
    """As a transcript has it."""
    return {"probability": judgement.probability, "swayed": judgement.swayed, **asdict(judgement)}


def preference(record: dict[str, Any]) -> dict[str, Any] | None:
    """A judged pair as a preference; None where neither is preferred."""
    first, second = record["answers"]
    if record["probability"] == 0.5:
        return None
    better, worse = (first, second) if record["probability"] > 0.5 else (second, first)
    return {"prompt": record["prompt"], "chosen": [assistant(better)], "rejected": [assistant(worse)]}
