"""How long a call takes, and a step of training.

Every system runs beside the hand-written function that does the same.

Before anything is timed, what each system computes is compared with what the hand-written function
computes. Dropout masks differ from library to library; so blocks are compared at a rate of zero,
loss by loss, together with the batch statistics, and at the rate that is timed losses must be of
the same size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import clock
import numpy as np
from clock import Row
from nets import Net, first_mean, mlp
from systems import BASELINE, CALLS, STEPS, Rule, Training

_CHECKED = 5  # steps
_TOLERANCE = 1e-4
_RATE = 0.1
_GROWING = (BASELINE, "hand-written, donated", *(name for name in STEPS if name.startswith("sb.")))


def inference(quick: bool) -> list[Row]:
    """A multi-layer perceptron, so narrow that there is next to nothing to compute."""
    rows = []
    for layers in (50,) if quick else (2, 50, 500):
        net = mlp(layers)
        x = net.batch(8)
        calls = {name: make(net, x) for name, make in CALLS.items()}
        expected = calls[BASELINE]()
        for name, call in calls.items():
            np.testing.assert_allclose(call(), expected, rtol=_TOLERANCE, atol=1e-5, err_msg=name)
        names = {
            "table": "Multi-layer perceptron, 16 wide, batch 8",
            "column": f"{2 * layers} variables",
        }
        rows += clock.rows(clock.interleaved(calls, 2 if quick else 30), BASELINE, **names)
    return rows


def training(quick: bool) -> list[Row]:
    """The perceptron with SGD; blocks with SGD and with Adam; blocks of growing width."""
    rows = []
    for layers in (10,) if quick else (2, 50, 500):
        names = {
            "table": "Multi-layer perceptron, 16 wide, batch 8, SGD",
            "column": f"{2 * layers} variables",
        }
        rows += _timed(_compared(mlp(layers), 8, Rule("SGD", 1e-2 / layers), STEPS), quick, names)
    _compared(Net((32,) * (2 if quick else 3), blocks=True), 32, Rule("Adam", 1e-3), STEPS)
    for rule in (Rule("Adam", 1e-3),) if quick else (Rule("SGD", 3e-2), Rule("Adam", 1e-3)):
        for n in (1,) if quick else (2, 12):
            net = Net((32,) * (n + 1), blocks=True, rate=_RATE)
            names = {
                "table": "Blocks, 32 wide, batch 32",
                "column": f"{n} block{'s' * (n > 1)}, {rule.name}",
            }
            rows += _timed(_of_same_size(net, 32, rule, STEPS), quick, names)
        net = Net((256, 512) if quick else (32, 64, 128, 256, 512), blocks=True, rate=_RATE)
        table = f"Blocks, {', '.join(map(str, net.widths[1:]))} wide, batch 32"
        systems = _of_same_size(net, 32, rule, _GROWING)
        rows += _timed(systems, quick, {"table": table, "column": rule.name})
    return rows


def _timed(systems: Mapping[str, Training], quick: bool, names: Mapping[str, str]) -> list[Row]:
    times = clock.interleaved(
        {name: system.step for name, system in systems.items()}, 2 if quick else 30
    )
    return clock.rows(times, BASELINE, **names)


def _compared(net: Net, batch: int, rule: Rule, names: Iterable[str]) -> dict[str, Training]:
    """Return the systems.

    Raises:
        AssertionError: One computes something else, or that couldn't be seen.
    """
    systems = {name: STEPS[name](net, net.batch(batch), rule) for name in names}
    losses, means = {}, {}
    for name, (step, state) in systems.items():
        losses[name] = [float(step())]
        means[name] = first_mean(state())  # before Adam makes whole steps of rounding errors
        losses[name] += [float(step()) for _ in range(1, _CHECKED)]
    expected = losses[BASELINE]
    assert abs(expected[-1] / expected[0] - 1) > 10 * _TOLERANCE, expected
    for name in systems:
        np.testing.assert_allclose(losses[name], expected, rtol=_TOLERANCE, err_msg=name)
        np.testing.assert_allclose(
            means[name], means[BASELINE], rtol=_TOLERANCE, atol=1e-6, err_msg=name
        )
    return systems


def _of_same_size(net: Net, batch: int, rule: Rule, names: Iterable[str]) -> dict[str, Training]:
    """Return the systems.

    Raises:
        AssertionError: Losses under other dropout masks aren't those of the same network.
    """
    systems = {name: STEPS[name](net, net.batch(batch), rule) for name in names}
    losses = {
        name: np.mean([float(step()) for _ in range(_CHECKED)])
        for name, (step, _) in systems.items()
    }
    for name, loss in losses.items():
        np.testing.assert_allclose(loss, losses[BASELINE], rtol=0.15, err_msg=name)
    return systems
