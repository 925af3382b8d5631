"""Timing in turns, so that noise meets all alike.

What is compared runs side by side, in another order each round.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

TURN = 0.01  # seconds that a system runs before it is the next one's turn
SLOW = 0.05  # seconds a call, beyond which a system gets fewer turns

Row = dict[str, Any]


def pin() -> None:
    """Keep to one core.

    Else calls wait for another thread to wake, or don't, which takes longer than the call.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def seconds(call: Callable[[], Any]) -> float:
    """One call, until its result is there. Of a training step the loss alone is waited for."""
    begin = time.perf_counter()
    result = call()
    if hasattr(result, "block_until_ready"):  # Keras returns what has arrived already
        result.block_until_ready()
    return time.perf_counter() - begin


def interleaved(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """The times of every call."""
    once = {name: min(seconds(call) for _ in range(3)) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds):
        turn = [name for name in calls if once[name] < SLOW or i % 4 == 0]
        for name in random.sample(turn, len(turn)):
            seconds(calls[name])  # the system before has left its own data in the caches
            times[name] += [seconds(calls[name]) for _ in range(max(1, round(TURN / once[name])))]
    return times


def rows(times: Mapping[str, list[float]], baseline: str, **names: str) -> list[Row]:
    """Minimum and median of each system, and their ratios to the baseline's."""
    least, median = min(times[baseline]), statistics.median(times[baseline])
    return [
        {
            **names,
            "system": system,
            "calls": len(own),
            "min_us": 1e6 * min(own),
            "med_us": 1e6 * statistics.median(own),
            "x_min": min(own) / least,
            "x_med": statistics.median(own) / median,
        }
        for system, own in times.items()
    ]
