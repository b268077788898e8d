"""Every parameter has a known source, and sources are asked in the stated order."""

from __future__ import annotations

import pytest

from pellucid.errors import InputError
from pellucid.inference.presets import PRESETS, resolve


def test_order_of_sources() -> None:
    resolved = resolve(
        request={"seed": 5},
        flags={"seed": 4, "top_k": 7, "max_tokens": None},
        preset_name="creative",
        generation_config={"temperature": 0.6, "repetition_penalty": 1.1, "max_new_tokens": 50, "eos_token_id": 2},
        default_preset="balanced",
        defaults={"max_tokens": 100},
    )
    assert resolved.params.model_dump(include={"seed", "top_k", "temperature", "min_p", "max_tokens"}) == {
        "seed": 5,
        "top_k": 7,
        "temperature": 1.0,
        "min_p": 0.05,
        "max_tokens": 50,
    }
    assert resolved.params.repetition_penalty == 1.1
    assert resolved.sources["seed"] == "request"
    assert resolved.sources["top_k"] == "flag"
    assert resolved.sources["temperature"] == "preset creative"
    assert resolved.sources["max_tokens"] == "generation_config.json"
    assert resolved.sources["stop"] == "built-in"


def test_the_models_file_goes_before_a_default_preset() -> None:
    resolved = resolve(generation_config={"temperature": 0.6}, default_preset="balanced")
    assert resolved.as_json()["temperature"] == {"value": 0.6, "source": "generation_config.json"}
    assert resolved.as_json()["top_p"] == {"value": 0.95, "source": "default preset balanced"}


def test_do_sample_false_is_arg_max() -> None:
    assert resolve(generation_config={"do_sample": False, "temperature": 0.6}).params.temperature == 0
    assert resolve(generation_config={"do_sample": True, "temperature": 0.6}).params.temperature == 0.6


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_whole(name: str) -> None:
    resolved = resolve(preset_name=name, generation_config={"temperature": 2, "top_k": 1, "top_p": 0.1, "min_p": 0.9})
    assert {source for field, source in resolved.sources.items() if field in PRESETS[name]} == {f"preset {name}"}
    assert {"temperature", "top_k", "top_p", "min_p"} == set(PRESETS[name])


def test_beams_leave_out_what_the_model_says_of_drawing() -> None:
    resolved = resolve(request={"beam_width": 4}, generation_config={"repetition_penalty": 1.1, "temperature": 0.6})
    assert resolved.params.repetition_penalty == 1 and resolved.sources["repetition_penalty"] == "built-in"
    assert resolved.params.temperature == 0.6
    with pytest.raises(InputError, match="flag: repetition_penalty has no place in the beam search"):
        resolve(request={"beam_width": 4}, flags={"repetition_penalty": 1.1})
    with pytest.raises(InputError, match=r"request: sampling: beam search goes by.*without repetition_penalty"):
        resolve(request={"beam_width": 4, "repetition_penalty": 1.1})


def test_bad_values_name_their_source() -> None:
    with pytest.raises(InputError, match=r"generation_config\.json: sampling: top_p = 3"):
        resolve(generation_config={"top_p": 3})
    with pytest.raises(InputError, match="flag: sampling: temperature = -1"):
        resolve(flags={"temperature": -1})
    with pytest.raises(InputError, match=r"did you mean 'creative'.*factual, balanced, creative"):
        resolve(preset_name="creativ")
