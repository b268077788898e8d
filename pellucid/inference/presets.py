"""Where each sampling parameter comes from: presets by task, and the order in which sources are asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pellucid.errors import InputError, did_you_mean
from pellucid.inference.params import NOT_FOR_BEAMS, SamplingParams

# Each sets the whole shape of the distribution, so that no half of another source's shape is left in it.
PRESETS: dict[str, dict[str, Any]] = {
    # Facts, extraction, code: close to the most likely token. Not quite arg-max, which falls into loops
    # (Holtzman et al. 2020, section 4): a little heat leaves them, and a narrow nucleus keeps out the unlikely.
    "factual": {"temperature": 0.2, "top_k": 0, "top_p": 0.9, "min_p": 0.0},
    # Conversation: varied wording, the tail of the distribution cut off.
    "balanced": {"temperature": 0.7, "top_k": 0, "top_p": 0.95, "min_p": 0.0},
    # Stories, ideas: the model's own distribution. Min-p widens the choice where the model is unsure and narrows it
    # where it is sure (Nguyen et al. 2024), which a fixed nucleus does not.
    "creative": {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.05},
}

# The names in generation_config.json and ours
FROM_FILE = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}


class Resolved(NamedTuple):
    """Sampling parameters, and for each of them where its value came from."""

    params: SamplingParams
    sources: dict[str, str]

    def as_json(self) -> dict[str, dict[str, Any]]:
        """`{"temperature": {"value": 0.7, "source": "preset balanced"}, ...}`"""
        values = self.params.model_dump(mode="json")
        return {name: {"value": values[name], "source": source} for name, source in self.sources.items()}


def preset(name: str) -> dict[str, Any]:
    """The values of a preset. Raises `InputError` with the names that there are."""
    if name not in PRESETS:
        raise InputError(f"there is no preset {name!r}{did_you_mean(name, PRESETS)}; there are {', '.join(PRESETS)}")
    return PRESETS[name]


def from_generation_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a model's generation_config.json says of sampling, under our names.

    `"do_sample": false` asks for the most likely token. Where it is left out, the temperature that is there counts.
    """
    found = {ours: config[theirs] for theirs, ours in FROM_FILE.items() if config.get(theirs) is not None}
    if config.get("do_sample") is False:
        found["temperature"] = 0.0
    return found


def resolve(
    *,
    request: Mapping[str, Any] | None = None,
    flags: Mapping[str, Any] | None = None,
    preset_name: str | None = None,
    generation_config: Mapping[str, Any] | None = None,
    default_preset: str | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Resolved:
    """The parameters of a request: of each, the first source that has it (a value of None is no value).

    request, then flags, then a preset that the user named, then the model's generation_config.json, then the preset and
    the other defaults of the command, then the defaults of `SamplingParams`.
    Beam search leaves out what it has no use for and nobody asked for, such as the penalty of a generation_config.json.
    Raises `InputError` that names the source of a bad value.
    """
    layers: Sequence[tuple[str, Mapping[str, Any]]] = (
        ("request", request or {}),
        ("flag", flags or {}),
        (f"preset {preset_name}", preset(preset_name) if preset_name else {}),
        ("generation_config.json", from_generation_config(generation_config or {})),
        (f"default preset {default_preset}", preset(default_preset) if default_preset else {}),
        ("default of the command", defaults or {}),
    )
    return _resolve(layers)


def _resolve(layers: Sequence[tuple[str, Mapping[str, Any]]]) -> Resolved:
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for source, layer in layers:
        given = {name: value for name, value in layer.items() if value is not None}
        try:
            SamplingParams(**given)
        except InputError as error:
            raise InputError(f"{source}: {error}") from None
        for name in given.keys() - values.keys():
            if name in NOT_FOR_BEAMS and values.get("beam_width") is not None:
                if source == "flag":
                    raise InputError(f"flag: {name} has no place in the beam search that is asked for: leave one out")
                continue  # who asks for beams did not ask for this
            values[name], sources[name] = given[name], source
    names = SamplingParams.model_fields
    return Resolved(SamplingParams(**values), {name: sources.get(name, "built-in") for name in names})
