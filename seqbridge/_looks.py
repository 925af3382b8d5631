"""How a model shows itself."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from seqbridge._build import check_inputs
from seqbridge._dispatch import Call, call_of
from seqbridge._forward import check_keywords
from seqbridge._list import LayerList
from seqbridge._pickle import portable
from seqbridge._summary import Summary, summarize


class Looks(LayerList):
    """A list of layers that can be looked at."""

    _in_order: ClassVar[
        Callable[..., Any]
    ]  # the call that runs the layers in order, and does no more

    def __init__(self, seed: Any = 0) -> None:
        super().__init__(seed)
        # What the first layer takes, with None for sizes that may be anything; and the keywords.
        self._inputs: tuple[tuple[Any, ...], Call] | None = None

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if self._inputs is not None:
            args, call = self._inputs
            given = portable((dict(call.keywords), dict(call.per_layer)))
            call = dataclasses.replace(call, keywords=given[0], per_layer=given[1])
            state["_inputs"] = portable(args), call
        return state

    def summary(self, *inputs: Any, **keywords: Any) -> Summary:
        """A table of the layers: library, entry, shapes, variables, floating-point operations. Nothing is computed.

        Print it, or let a notebook show it. The model needn't be built, nor is it built by this.

        Args:
            *inputs: As for `build`. Without any, those that the model was built for.
            **keywords: As for a call. Where they say no mode, the call that is looked at is one in
                evaluation.

        Raises:
            TypeError, ValueError: What a layer raises for these shapes.

        Examples:
            >>> import jax, jax.numpy as jnp
            >>> from seqbridge import Sequential
            >>> model = Sequential([lambda x, w=jnp.ones((4, 8)): x @ w, jax.nn.relu])
            >>> print(model.summary((None, 4)))
            layer  library   entry     input -> output                     params  trained  FLOPs
            -------------------------------------------------------------------------------------
            [0]    function  <lambda>  float32[None,4] -> float32[None,8]      32      yes     64
            [1]    function  relu      float32[None,8] -> float32[None,8]                       8
            total: 32 parameters, 0 of state, 128 bytes, 72 FLOPs
            FLOPs are those for 1 in place of None
        """
        return self._summary(inputs, keywords)

    def _summary(
        self, inputs: tuple[Any, ...], keywords: Mapping[str, Any], *, count: bool = True
    ) -> Summary:
        call = call_of(
            {name: value for name, value in keywords.items() if name != "rng"}
        )  # nothing is drawn
        if not inputs:
            check_keywords(self, (), call)
            inputs, built_for = self._inputs or ((), call)
            call = Call(
                call.training,
                {**built_for.keywords, **call.keywords},
                call.per_layer or built_for.per_layer,
            )
            return summarize(self, inputs, call, given=False, count=count)
        check_inputs(inputs)
        return summarize(self, inputs, call, given=True, count=count)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        """What a notebook shows; not as `_repr_html_`, which treescope would show in place of its tree."""
        try:
            shown = self._summary((), {}, count=False)._repr_html_()
        except Exception:  # a notebook must be able to show what is broken, too
            shown = f"<pre>{html.escape(repr(self))}</pre>"
        return {"text/plain": repr(self), "text/html": shown}

    def __dir__(self) -> list[str]:
        return sorted({*object.__dir__(self), *(n for n in self.names if n is not None)})

    def _ipython_key_completions_(self) -> list[str]:
        return [n for n in self.names if n is not None]

    def __repr__(self) -> str:
        lines = []
        for i, (name, item) in enumerate(zip(self._labels, self._layers, strict=True)):
            text = repr(item).replace("\n", "\n  ")
            lines.append(f"  [{i}] {f'{name}: ' if name else ''}{text}")
        body = "\n".join(lines)
        return f"{type(self).__name__}(\n{body}\n)" if lines else f"{type(self).__name__}()"
