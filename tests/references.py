"""Where the parity material lies: files of packages that `make test` unpacks, never part of the repository."""

from pathlib import Path

REFERENCES = Path(__file__).parents[1] / ".cache" / "references"
