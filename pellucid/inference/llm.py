"""`LLM`: a model that answers many prompts at once, from Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from pellucid.checkpoints.load import load, to_run
from pellucid.inference.engine import Engine
from pellucid.inference.generate import one_each, prompt_ids
from pellucid.inference.output import Output, Outputs
from pellucid.inference.params import SamplingParams
from pellucid.inference.presets import resolve
from pellucid.inference.progress import AnswerBar
from pellucid.operations.hardware import best_precision, use_best_threads

Message = dict[str, Any]


class LLM:
    """A model and the engine that runs it.

    name: as for `pellucid.load`. dtype: "auto" takes the precision that is faster here, which is measured once.
    draft: the name of a smaller model of the same vocabulary, which guesses ahead: answers stay as they are, token for
    token, and come faster where most guesses are right.
    quantize: "int8" or "int4" (or "q8_0", "q4_0", "q4_1") rounds the weights. None: weights that lie in blocks of
    integers stay so, unless a dtype is asked for; see `checkpoints.load.to_run`.
    options: of the `Engine`, such as num_blocks or max_sequences.
    """

    def __init__(
        self,
        name: str | Path,
        *,
        dtype: str = "auto",
        quantize: str | None = None,
        draft: str | Path | None = None,
        **options: Any,
    ):
        use_best_threads()
        model, self.tokenizer = load(name, dtype=best_precision(dtype).name, quantize=to_run(quantize, dtype))
        guesser = None if draft is None else load(draft, dtype=best_precision(dtype).name, quantize=to_run(None, dtype))
        self.engine = Engine(model, self.tokenizer, draft=guesser, **options)

    def generate(
        self,
        prompts: str | Sequence[str | Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = True,
    ) -> list[Output]:
        """Answers to each prompt: text, or token ids taken as they are.

        params: for all, or one for each; None: what the model's generation_config.json says.
        progress: a bar on stderr, at a terminal.

        Raises `InputError` for a prompt that cannot be answered, before any is; `PellucidError` where none of the
        tokens of an answer can be drawn.
        """
        several = [prompts] if isinstance(prompts, str) else list(prompts)
        ids = [prompt_ids(self.tokenizer, one) if isinstance(one, str) else list(one) for one in several]
        return self._answers(ids, self._each(params, len(ids)), progress, in_chat=False)

    def chat(
        self,
        conversations: Sequence[Message] | Sequence[Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = True,
    ) -> list[Output]:
        """The assistant's next turn in a conversation, or in each of several, through the model's chat template.

        Parameters and errors as for `generate`.
        """
        single = bool(conversations) and isinstance(conversations[0], dict)
        several = cast("Sequence[Sequence[Message]]", [conversations] if single else conversations)
        ids = [self.tokenizer.apply_chat_template(one, add_generation_prompt=True).ids for one in several]
        return self._answers(ids, self._each(params, len(ids)), progress, in_chat=True)

    def _each(self, params: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
        if params is None:
            params = resolve(generation_config=self.engine.model.generation_config).params
        return one_each(params, count)

    def _answers(
        self, prompts: list[list[int]], params: list[SamplingParams], progress: bool, in_chat: bool
    ) -> list[Output]:
        with Outputs(self.engine) as outputs:
            for asked in zip(prompts, params, strict=True):
                outputs.add(*asked, in_chat=in_chat)
            with AnswerBar(outputs, shown=progress) as bar:
                return list(outputs.answered(bar.update))
