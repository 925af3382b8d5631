"""The bytes that a compiled step of training holds at its peak, with and without donation.

They are what XLA itself says.
"""

from __future__ import annotations

from typing import Any

import jax
from clock import Row
from libraries import sequential
from nets import Net, by_hand
from systems import BASELINE, Rule, pure_step, sequential_step

import seqbridge as sb

_SYSTEMS: dict[str, dict[str, bool] | None] = {
    BASELINE: None,
    "sb.jit": {},
    "sb.jit(pack=True)": {"pack": True},
}


def memory(quick: bool) -> list[Row]:
    """Measure blocks of growing width.

    Arguments, results and what lies between count, less what shares a buffer.
    """
    rows = []
    widths = (256, 512) if quick else (32, 64, 128, 256, 512)
    net, table = (
        Net(widths, True, 0.1),
        f"Training step of blocks, {', '.join(map(str, widths[1:]))} wide, batch 32",
    )
    for rule in (Rule("Adam", 1e-3),) if quick else (Rule("SGD", 1e-2), Rule("Adam", 1e-3)):
        for donate in (False, True):
            names = {"table": table, "column": f"{rule.name}, donated" if donate else rule.name}
            compiled = {
                name: _compiled(net, options, rule, donate) for name, options in _SYSTEMS.items()
            }
            peaks = {name: _peak(program.memory_analysis()) for name, program in compiled.items()}
            rows += [
                {**names, "system": name, "bytes": peak, "x_bytes": peak / peaks[BASELINE]}
                for name, peak in peaks.items()
            ]
    return rows


def _compiled(
    net: Net, options: dict[str, bool] | None, rule: Rule, donate: bool
) -> jax.stages.Compiled:
    x = net.batch(32)
    if options is None:
        apply, params, state = by_hand(net)
        step = jax.jit(pure_step(apply, rule.optax), donate_argnums=0 if donate else ())
        return step.lower((params, state, rule.optax.init(params), net.key), x).compile()
    model, step = sequential(net), sequential_step(net, donate=donate, **options)
    optimizer = sb.Optimizer(model, rule.optax)
    step(model, optimizer, x)  # what is donated is known after a call
    return step.lower(model, optimizer, x).compile()


def _peak(analysis: Any) -> int:
    sizes = (
        analysis.argument_size_in_bytes,
        analysis.output_size_in_bytes,
        analysis.temp_size_in_bytes,
    )
    return sum(sizes) - analysis.alias_size_in_bytes
