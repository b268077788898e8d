"""Make a picture of a real run: the command is run, and what it prints at a terminal becomes an SVG.

python docs/picture.py docs/demo.svg pellucid demo
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

WIDTH = 100


def main(target: Path, command: list[str]) -> None:
    environment = {**os.environ, "FORCE_COLOR": "1", "COLORTERM": "truecolor", "COLUMNS": str(WIDTH)}
    path = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    done = subprocess.run(command, env={**environment, "PATH": path}, stdout=subprocess.PIPE, text=True, check=True)
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    console.print(Text.from_ansi(f"$ {' '.join(command)}\n{done.stdout}"), soft_wrap=False)
    drawn = console.export_svg(title=" ".join(command), unique_id="run")
    target.write_text(re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL))  # no font from a server


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: python docs/picture.py PICTURE.svg COMMAND [ARGUMENT ...]")
    main(Path(sys.argv[1]), sys.argv[2:])
