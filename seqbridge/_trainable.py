"""`trainable`, of what holds the variables of layers."""

from __future__ import annotations

from collections.abc import Mapping

from seqbridge._saving import Saved


class Trainable(Saved):
    """Something whose parameters can be frozen, all at once."""

    __slots__ = ()

    @property
    def trainable(self) -> bool:
        """Whether any variable is trained; can be set, for all parameters that are there."""
        return any(variable.trainable for variable in self._boxes())

    @trainable.setter
    def trainable(self, value: bool) -> None:
        if not getattr(self, "built", True):
            raise RuntimeError(
                "this isn't built, so nothing is there to freeze: call build(...) first"
            )
        if isinstance(self, Mapping) and not self:
            raise ValueError(
                "this collection is empty: print(model.vars()) shows what variables are called"
            )
        for variable in self._boxes():
            if variable.kind == "params":
                variable.trainable = value
