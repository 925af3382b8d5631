"""Makes the pictures of the docs: `python docs/images/make.py`, with Chromium on the path."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import treescope
from flax import nnx
from rich.console import Console
from rich.text import Text

import seqbridge as sb

HERE = Path(__file__).parent
BROWSER = [
    "chromium",
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=4000",
]


def model() -> sb.Sequential:
    """A model of four libraries and functions."""
    return sb.Sequential({
        "conv": nn.Conv(20, (5, 5)),
        "act": nn.relu,
        "body": sb.Sequential([partial(hk.Conv2D, 64, 5), nn.BatchNorm(), nn.Dropout(0.5)]),
        "pool": lambda x: x.mean((1, 2)),
        "deep": sb.Repeat(nn.Dense(64), 10),
        "norm": nnx.LayerNorm(64, rngs=nnx.Rngs(0)),
        "frozen": sb.Layer(partial(eqx.nn.Linear, 64, 32), trainable=False),
        "head": partial(hk.Linear, 10),
    })  # fmt: skip


def of_the_readme() -> sb.Sequential:
    """The model with which the README begins."""
    names: dict[str, Any] = {}
    exec((HERE.parents[1] / "README.md").read_text().split("```python\n")[1].split("```")[0], names)
    return names["model"]


def screenshot(html: str, name: str, width: int, height: int) -> None:
    """What a browser shows of a page."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        page.write_text(html)
        size = [f"--window-size={width},{height}", "--force-device-scale-factor=1.6"]
        where = [f"--user-data-dir={folder}/profile", f"--screenshot={HERE / name}", page.as_uri()]
        command = [*BROWSER, *size, *where]
        subprocess.run(command, check=True, capture_output=True)


def in_a_terminal(code: str, width: int) -> str:
    """What a program writes into a terminal."""
    ours, theirs = pty.openpty()
    environment = {
        **os.environ,
        "COLUMNS": str(width),
        "TERM": "xterm-256color",
        "PYTHONPATH": str(HERE),
    }
    with subprocess.Popen([sys.executable, "-c", code], stdout=theirs, env=environment):
        os.close(theirs)
        written = b""
        while True:
            try:
                written += os.read(ours, 65536)
            except OSError:  # the other end is closed
                return written.decode().replace("\r\n", "\n")


def summary(model: str, call: str, name: str, width: int, height: int) -> None:
    """What a terminal shows of a summary."""
    text = in_a_terminal(f"import make; model = make.{model}(); print({call})", width)
    console = Console(record=True, width=width, file=io.StringIO())
    console.print(Text.from_ansi(text))
    page = console.export_svg(title=f"print({call})")
    screenshot(
        f"<body style='margin: 0'><div style='width: 1200px'>{page}</div></body>",
        name,
        1200,
        height,
    )


if __name__ == "__main__":
    summary("of_the_readme", "model.summary()", "readme.png", 134, 228)
    summary("model", "model.summary((None, 28, 28, 1))", "summary.png", 172, 264)
    built = model().build((None, 28, 28, 1))
    tree = treescope.render_to_html(built, compressed=False)
    screenshot(f"<body style='margin: 4px'>{tree}</body>", "tree.png", 1200, 490)
    sb.plot(built).save(HERE / "model.svg")
