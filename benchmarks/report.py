"""What a run has measured, as a page of tables and as a plot; also of a file from before.

python benchmarks/report.py out.json --page docs/benchmarks.md --plot docs/benchmarks.svg
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from clock import Row
from matplotlib import pyplot as plt
from matplotlib.ticker import NullFormatter

Cell = Callable[[Row], str]


def _time(microseconds: float) -> str:
    size, unit = next(
        (pair for pair in ((1e6, "s"), (1e3, "ms")) if microseconds >= pair[0]), (1, "µs")
    )
    return f"{microseconds / size:.3g} {unit}"


def _milliseconds(number: float) -> str:
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def _ratio(row: Row) -> str:
    """Of the baseline its time, of others how often that: median and, in parentheses, minimum."""
    return _time(row["med_us"]) if row["baseline"] else f"{row['x_med']:.2f} ({row['x_min']:.2f})"


def _both(row: Row) -> str:
    return _time(row["med_us"]) + ("" if row["baseline"] else f" ({row['x_med']:.2f})")


def _lowered(row: Row) -> str:
    if row["baseline"]:
        return _time(1e3 * row["lowered_ms"])
    return f"{row['x_lowered']:.2f}" + (f" ({row['x_native']:.2f})" if "x_native" in row else "")


def _total(row: Row) -> str:
    return _time(1e3 * row["total_ms"]) if row["baseline"] else f"{row['x_total']:.2f}"


def _stages(row: Row) -> str:
    first = ("trace_ms", "lower_ms") if "trace_ms" in row else ("lowered_ms",)
    return " + ".join(_milliseconds(row[key]) for key in (*first, "compile_ms"))


def _bytes(row: Row) -> str:
    return f"{row['bytes'] / 2**20:.2f} MiB" if row["baseline"] else f"{row['x_bytes']:.3f}"


class _Section(NamedTuple):
    """How a section is shown: its heading, what its cells say, and cells by their headings."""

    title: str
    text: str
    cells: Mapping[str, Cell]


_RATIOS = (
    "Of the hand-written function the median time, of the others how often that; in parentheses, "
    "minima."
)
SECTIONS = {
    "inference": _Section("Calls", _RATIOS, {"": _ratio}),
    "training": _Section("Training steps", _RATIOS, {"": _ratio}),
    "depth": _Section(
        "Tracing, lowering, compiling",
        "Of the hand-written function the time, of the others how often that; in parentheses, how "
        "often what the entries' own library takes. Then the same with compiling, and the times "
        "themselves in ms: trace + lower + compile, or trace and lower together + compile.",
        {"trace and lower": _lowered, "until it can run": _total, "ms": _stages},
    ),
    "startup": _Section(
        "Before the first step",
        "Median times; in parentheses, how often the first row's.",
        {"": _both},
    ),
    "memory": _Section(
        "Memory",
        "Peak bytes of the compiled program: of the hand-written one, and how often that.",
        {"": _bytes},
    ),
    "devices": _Section("Many devices", f"Virtual ones of the CPU. {_RATIOS}", {"": _ratio}),
}


def page(results: Mapping[str, Any], plot: str | None) -> str:
    """Everything, as markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines = [
        "# Benchmarks",
        "",
        "What `benchmarks/` measured in one run, in which all systems of a table took turns; "
        "[benchmarks/README.md](../benchmarks/README.md) says what they are and how to read this.",
        "",
        *(["Quick: few times each, to see that everything runs.", ""] if results["quick"] else []),
        f"- {results['machine']}; all but the many devices on one core",
        f"- {versions}",
        f"- `{results['command']}`",
        *(["", f"![Time per call, against hand-written functions]({plot})"] if plot else []),
    ]
    for name, section in SECTIONS.items():
        rows = [row for row in results["rows"] if row["section"] == name]
        lines += (
            ["", f"## {section.title}", "", section.text, *_tables(rows, section.cells)]
            if rows
            else []
        )
    return "\n".join(lines) + "\n"


def _tables(rows: list[Row], cells: Mapping[str, Cell]) -> Iterator[str]:
    for title in dict.fromkeys(row["table"] for row in rows):
        own = [row for row in rows if row["table"] == title]
        columns = dict.fromkeys(row["column"] for row in own)
        systems = dict.fromkeys(row["system"] for row in own)
        for suffix, cell in cells.items():
            found = {(row["system"], row["column"]): cell(row) for row in own}
            yield from ("", f"### {title}" + (f": {suffix}" if suffix else ""), "")
            yield f"| | {' | '.join(columns)} |"
            yield "|---|" + "---|" * len(columns)
            for system in systems:
                shown = [found.get((system, column), "") for column in columns]
                yield f"| {system} | {' | '.join(shown)} |"


# The plot


class _Panel(NamedTuple):
    """What one panel shows: the first column that was measured of a section's table.

    The table is given by the start of its name.
    """

    title: str
    section: str
    table: str
    columns: tuple[str, ...]
    ratio: str = "x_med"


_PANELS = (
    _Panel("call of a perceptron", "inference", "Multi", ("100 variables",)),
    _Panel("its training step", "training", "Multi", ("100 variables", "20 variables")),
    _Panel(
        "training step of blocks", "training", "Blocks, 32", ("12 blocks, Adam", "1 block, Adam")
    ),
    _Panel("until a step can run", "depth", "Training", ("100 layers", "10 layers"), "x_total"),
)
_LINES = {  # label: systems, of which a panel has one
    "sb.freeze": ("sb.freeze",),
    "sb.jit(pack=True)": ("sb.jit(pack=True)", "sb.jit(pack=True) of linen entries"),
    "sb.jit": ("sb.jit", "sb.jit of linen entries"),
    "linen apply": ("linen apply, jax.jit",),
    "Haiku apply": ("Haiku apply, jax.jit",),
    "Keras stateless_call": ("Keras stateless_call, jax.jit",),
    "nnx split and merge": ("nnx split and merge, jax.jit",),
    "eqx.partition": ("eqx.partition, jax.jit",),
    "eqx.filter_jit": ("eqx.filter_jit",),
    "nnx.jit, cached_partial": ("nnx.jit, cached_partial",),
    "Keras *_on_batch": ("Keras predict_on_batch", "Keras train_on_batch"),
    "linen in NNX": ("linen in NNX (bridge.ToNNX), nnx.jit",),
    "nnx.jit": ("nnx.jit",),
}


def plot(results: Mapping[str, Any], path: Path) -> None:
    """Ratios to the hand-written functions, in as many panels as there are numbers for."""
    panels = {
        title: ratios for panel in _PANELS for title, ratios in _ratios(results["rows"], panel)
    }
    if not panels:
        return
    mpl.rcParams.update({"svg.hashsalt": "seqbridge", "svg.fonttype": "none", "font.size": 9})
    figure, axes = plt.subplots(
        1, len(panels), figsize=(1.8 + 2 * len(panels), 3.6), sharey=True, squeeze=False
    )
    for axis, (title, ratios) in zip(axes[0], panels.items(), strict=True):
        for label, ratio in ratios.items():
            y, color = (
                list(_LINES).index(label),
                "#c2410c" if label.startswith("sb.") else "#64748b",
            )
            axis.plot([1, ratio], [y, y], color=color, linewidth=1)
            axis.plot(ratio, y, "o", color=color, markersize=4)
            axis.text(max(ratio, 1) * 1.2, y, f"{ratio:.2f}", va="center", fontsize=7, color=color)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_xscale("log")
        axis.set_xlim(min([0.4, *ratios.values()]), 3.5 * max([2, *ratios.values()]))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_title(title, fontsize=9)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
    axes[0][0].set_yticks(range(len(_LINES)), list(_LINES))
    axes[0][0].invert_yaxis()
    figure.supxlabel("times as long as the hand-written function in jax.jit", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _ratios(rows: list[Row], panel: _Panel) -> Iterator[tuple[str, dict[str, float]]]:
    own = [
        row
        for row in rows
        if row["section"] == panel.section and row["table"].startswith(panel.table)
    ]
    for column in panel.columns:
        found = {row["system"]: row[panel.ratio] for row in own if row["column"] == column}
        if found:
            lines = {
                label: found[name]
                for label, names in _LINES.items()
                for name in names
                if name in found
            }
            yield f"{panel.title}\n{column}", lines
            return


def write(results: Mapping[str, Any], page_path: Path | None, plot_path: Path | None) -> None:
    """The page and the plot, whichever has a path."""
    if plot_path:
        plot(results, plot_path)
    if page_path:
        shown = plot_path and os.path.relpath(plot_path, page_path.parent)
        page_path.write_text(page(results, shown), encoding="utf-8")


def main() -> None:
    """Read and write; see `--help`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("json", type=Path, help="what `run.py --json` has written")
    parser.add_argument("--page", type=Path, help="a markdown file for the tables")
    parser.add_argument("--plot", type=Path, help="an SVG file for the plot")
    options = parser.parse_args()
    write(json.loads(options.json.read_text(encoding="utf-8")), options.page, options.plot)


if __name__ == "__main__":
    main()
