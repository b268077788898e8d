"""`ModelConfig`: what a decoder is, as a handful of orthogonal fields."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pellucid.errors import from_validation
from pellucid.layers.positions import Rope


class ModelConfig(BaseModel):
    """A decoder. GPT-2, Llama, Mistral, Qwen and Gemma differ in nothing but these fields.

    Raises `InputError` that names the field, its value and what is allowed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Size
    vocab_size: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    num_layers: int = Field(gt=0)
    num_heads: int = Field(gt=0)
    num_kv_heads: int = Field(0, ge=0)  # 0: as many as num_heads (MHA); 1: MQA; between: GQA
    head_dim: int = Field(0, ge=0)  # 0: hidden_size / num_heads
    intermediate_size: int = Field(gt=0)
    max_positions: int = Field(gt=0)  # the context length, in tokens

    # Norms
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    norm_eps: float = Field(1e-5, gt=0)
    norm_offset: bool = False  # Gemma stores the weight minus one
    norm_position: Literal["pre", "post", "sandwich"] = "pre"

    # Attention
    query_bias: bool = False  # on query, key and value
    output_bias: bool = False  # on the output projection
    qk_norm: bool = False  # a norm over each head's query and key
    attention_scale: float | None = Field(None, gt=0)  # None: head_dim ** -0.5
    attention_softcap: float | None = Field(None, gt=0)
    window: int | None = Field(None, gt=0)  # a token sees the last `window` tokens, itself among them
    window_layers: tuple[bool, ...] | None = None  # which layers are so bound; None: all, when there is a window

    # Feed-forward
    activation: Literal["relu", "gelu", "gelu_tanh", "swiglu", "geglu", "geglu_tanh"] = "swiglu"
    feed_forward_bias: bool = False

    # Positions
    position: Literal["rotary", "learned", "sinusoidal", "alibi", "none"] = "rotary"
    rope: Rope = Rope()
    local_rope: Rope | None = None  # of the layers with a window, where it differs (Gemma 3)

    # Ends
    embedding_scale: float | None = Field(None, gt=0)  # Gemma multiplies embeddings by sqrt(hidden_size)
    logit_softcap: float | None = Field(None, gt=0)
    tie_embeddings: bool = False

    # Training
    initializer_range: float = Field(0.02, gt=0)

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise from_validation(error, "model config", type(self).model_fields) from None

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Zeros stand for what follows from other fields."""
        fields = dict(fields)
        hidden, heads = fields.get("hidden_size"), fields.get("num_heads")
        if isinstance(hidden, int) and isinstance(heads, int) and heads > 0:
            fields["num_kv_heads"] = fields.get("num_kv_heads") or heads
            if not fields.get("head_dim"):
                if hidden % heads:
                    raise ValueError(
                        f"hidden_size = {hidden} must be a multiple of num_heads = {heads}, or head_dim given"
                    )
                fields["head_dim"] = hidden // heads
            if fields["head_dim"] and fields.get("attention_scale") == fields["head_dim"] ** -0.5:
                fields["attention_scale"] = None  # one way to say it, so that equal models have equal configs
        return fields

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads = {self.num_kv_heads} must divide num_heads = {self.num_heads}: "
                "each key-value head serves an equal group of query heads"
            )
        if self.position == "rotary" and self.head_dim % 2:
            raise ValueError(f"head_dim = {self.head_dim} must be even: rotary positions turn pairs")
        if self.window_layers is not None:
            if self.window is None:
                raise ValueError("window_layers is given, so window must be too")
            if len(self.window_layers) != self.num_layers:
                raise ValueError(
                    f"window_layers has {len(self.window_layers)} entries and num_layers = {self.num_layers}: "
                    "give one a layer"
                )
        if self.local_rope is not None and self.window is None:
            raise ValueError("local_rope is of the layers with a window, and window is not given")
        for rope in (self.rope, self.local_rope):
            if rope is not None and rope.scaling in ("yarn", "llama3") and rope.original_max_positions is None:
                raise ValueError(f"rope.scaling = {rope.scaling!r} needs rope.original_max_positions")
        return self

    def layer_window(self, layer: int) -> int | None:
        """How many tokens layer number `layer` sees (the token itself among them), or None for all."""
        if self.window is None or (self.window_layers is not None and not self.window_layers[layer]):
            return None
        return self.window

    def layer_rope(self, layer: int) -> Rope:
        """The rotary positions of layer number `layer`."""
        return self.local_rope if self.local_rope is not None and self.layer_window(layer) else self.rope
