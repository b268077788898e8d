"""Small models of several architectures and a tokenizer of bytes, to try the engine on."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import ClassVar, NamedTuple

from pellucid.layers.positions import Rope
from pellucid.models.config import ModelConfig
from pellucid.models.decoder import Decoder

BOS, EOS = 256, 257
VOCAB = 258

SIZE = {
    "vocab_size": VOCAB + 6,  # padded past the tokenizer's, as real models are
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 4,
    "intermediate_size": 48,
    "max_positions": 96,
    "initializer_range": 0.5,  # large, so that the most likely token is no tie and changes from step to step
}

ARCHITECTURES = {
    "llama": {"num_kv_heads": 2},
    "gpt2": {
        "norm": "layernorm",
        "position": "learned",
        "activation": "gelu_tanh",
        "query_bias": True,
        "output_bias": True,
        "feed_forward_bias": True,
        "tie_embeddings": True,
    },
    "mistral": {"num_kv_heads": 2, "window": 7},
    "qwen3": {"num_kv_heads": 1, "qk_norm": True, "head_dim": 16, "tie_embeddings": True},
    "gemma2": {
        "norm_position": "sandwich",
        "norm_offset": True,
        "activation": "geglu_tanh",
        "window": 5,
        "window_layers": (True, False),
        "local_rope": Rope(theta=500.0),
        "attention_softcap": 20.0,
        "logit_softcap": 30.0,
        "embedding_scale": 5.6,
        "tie_embeddings": True,
    },
    "alibi": {"position": "alibi", "norm_position": "post", "activation": "relu"},
    "sinusoidal": {"position": "sinusoidal"},
    "no positions": {"position": "none"},
}


def tiny_model(architecture: str = "llama", seed: int = 0) -> Decoder:
    return Decoder(ModelConfig(**{**SIZE, **ARCHITECTURES[architecture]}), seed=seed).eval()


class ByteStream:
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(bytes([token])) if token < 256 else f"<{token}>"

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class ChatIds(NamedTuple):
    ids: list[int]


class ByteTokenizer:
    """A token a byte, and BOS and EOS: what the engine asks of a tokenizer, and no more."""

    vocab_size = VOCAB
    bos_id = BOS
    stop_ids = (EOS,)
    special_tokens: ClassVar[dict[str, int]] = {f"<{BOS}>": BOS, f"<{EOS}>": EOS}

    def __init__(self, adds_bos: bool = True) -> None:
        self.adds_bos = adds_bos

    def encode(self, text: str, *, allow_special: bool = False, add_bos: bool = False) -> list[int]:
        return [BOS] * add_bos + list(text.encode())

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else f"<{token}>".encode()

    def decode(self, ids: list[int]) -> str:
        return "".join(pieces(ids))

    def apply_chat_template(self, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> ChatIds:
        text = "".join(f"{one['role']}: {one['content']}\n" for one in messages)
        return ChatIds(self.encode(text + "assistant: " * add_generation_prompt, add_bos=True))

    def stream_decoder(self, *, begun: bool = False) -> ByteStream:
        return ByteStream()


def pieces(ids: list[int]) -> Iterator[str]:
    stream = ByteStream()
    yield from map(stream.push, ids)
    yield stream.finish()
