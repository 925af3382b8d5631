"""The version of all models' structures: what is cached of a structure holds for one version."""

from __future__ import annotations

import itertools
import threading


class _Version:
    """Counts the edits of all models: what is cached of a model's structure holds while this stands still.

    No count comes twice, so that what a thread found before an edit is never taken for what holds
    after it.

    Attributes:
        lock: Held while a structure is read, or while what must not be read by halves is written.
            Whoever holds it waits for nothing else.
    """

    def __init__(self) -> None:
        self.number = 0
        self.lock = threading.RLock()
        self._following = itertools.count(1).__next__

    def bump(self) -> None:
        """Says that a structure has changed; to be called after the change."""
        self.number = self._following()


version = _Version()


# A number that no two objects of a process share, dead ones included.
serial = itertools.count().__next__
