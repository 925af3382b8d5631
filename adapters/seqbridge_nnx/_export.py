"""Export of a layer to an NNX module."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
from flax import nnx

from seqbridge import PureLayer, Variables, as_method, nest, training_of, unnest
from seqbridge_nnx._structure import Path

_KINDS: Mapping[str, type[nnx.Variable]] = {"params": nnx.Param, "state": nnx.BatchStat}


class _LayerHolder:
    """A layer as a static attribute of a module.

    It isn't one of the module's class, since JAX keeps classes of modules for good.
    """

    def __init__(self, layer: PureLayer):
        self.layer = layer

    def __deepcopy__(self, memo: dict[int, Any]) -> _LayerHolder:
        return self


class _Exported(nnx.Module):
    """A layer of any library as an NNX module.

    Its variables are attributes of it, `module.Conv_0.kernel`.
    """

    places: ClassVar[Mapping[Path, type[nnx.Variable]]]

    def __init__(self, layer: PureLayer, values: Variables, rngs: nnx.Rngs):
        self._holder = _LayerHolder(layer)
        mode = layer.signature.parameters.get("training") if layer.signature is not None else None
        self.deterministic = mode is not None and mode.default is False
        if layer.takes_key:
            self.rngs = rngs.fork()
        arrays = unnest(values)
        variables = {place[1:]: kind(arrays[place]) for place, kind in self.places.items()}
        for name, tree in nest(variables).items():
            if hasattr(self, name):
                raise ValueError(
                    f"{name!r} is an attribute of every NNX module: give the layer another name"
                )
            setattr(self, name, _to_nnx_dicts(tree))

    def _run(
        self,
        args: tuple[Any, ...],
        training: bool | None,
        rngs: nnx.Rngs | nnx.RngStream | None,
        keywords: dict[str, Any],
    ) -> Any:
        def next_key() -> jax.Array:
            stream = rngs or getattr(self, "rngs", None)
            if stream is None:  # whatever was known of the model, it drew nothing
                raise TypeError("a layer draws random numbers: give the call rngs=nnx.Rngs(...)")
            return stream() if isinstance(stream, nnx.RngStream) else stream.dropout()

        if training is None and training_of(keywords) is None:
            training = not self.deterministic
        out, new = self._holder.layer.apply(
            self.seqbridge_variables(), next_key, *args, training=training, **keywords
        )
        nnx.update(self, new.get("state", {}))
        return out

    def set_view(
        self, deterministic: bool | None = None, use_running_average: bool | None = None
    ) -> None:
        """Let `nnx.view` decide on the mode."""
        if deterministic is not None:
            self.deterministic = deterministic
        elif use_running_average is not None:
            self.deterministic = use_running_average

    def seqbridge_variables(self) -> Variables:
        """Return the arrays now, for `seqbridge.from_native`."""
        variables: dict[Path, Any] = {}
        for path, variable in nnx.to_flat_state(nnx.state(self)):
            variables[tuple(str(part) for part in path)] = variable
        arrays = {place: variables[place[1:]][...] for place in self.places}
        return {"params": {}, "state": {}, **nest(arrays)}


def _to_nnx_dicts(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    return nnx.Dict({name: _to_nnx_dicts(inner) for name, inner in tree.items()})


def export(layer: PureLayer, *, rngs: nnx.Rngs | int | None = None) -> nnx.Module:
    """A model, a layer or an entry of any library as a Flax NNX module.

    It is a module like any other, for `nnx.jit`, `nnx.grad`, `nnx.Optimizer`, `nnx.split`, and as
    an attribute of other modules. Parameters are `nnx.Param`, frozen ones plain `nnx.Variable`s,
    state is `nnx.BatchStat`, each under its readable name: `module.Conv_0.kernel`. `train()` and
    `eval()` switch the mode; it starts in training. Random numbers come from the stream `dropout`.

    Args:
        layer: The `PureLayer` of what goes out.
        rngs: Where its streams of keys are forked from, an `nnx.Rngs` or a seed. The stream
            `params` draws the values of a model that isn't built. At a call, `rngs=` is a keyword.

    Returns:
        A `flax.nnx.Module`.

    Raises:
        TypeError: `x` is no entry, or isn't built.
        ValueError: A layer has a name that is taken in every NNX module.

    Examples:
        >>> import flax.linen as nn, jax.numpy as jnp, seqbridge as sb
        >>> module = sb.to_nnx([jnp.tanh, nn.Dense(3)], (None, 4))  # (batch, features)
        >>> module(jnp.ones((2, 4))).shape, module.Dense_1.kernel.shape
        ((2, 3), (4, 3))
    """
    if layer.init is None or not (layer.ready or layer.inputs):
        raise TypeError(
            f"an NNX module has values from the start, and this {layer.label} isn't built: call "
            "model.build(...) before, or give the shapes, sb.to_nnx(x, (None, 28, 28, 1))"
        )

    def call(
        self: _Exported,
        *args: Any,
        training: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
        **keywords: Any,
    ) -> Any:
        return self._run(args, training, rngs, keywords)

    as_method(call, layer, *(["rngs"] if layer.takes_key else []))
    streams = nnx.Rngs(rngs or 0) if isinstance(rngs, int | None) else rngs
    values = layer.ready or layer.init(layer.seed if rngs is None else streams.params)
    frozen = layer.frozen()
    places: dict[Path, type[nnx.Variable]] = {}
    for place in unnest(values):
        places[place] = nnx.Variable if place in frozen else _KINDS[place[0]]
    layer = dataclasses.replace(layer, ready=None)  # the module has the values
    attributes = {"__call__": call, "__module__": __name__, "places": places}
    cls: Any = type(layer.label, (_Exported,), attributes)
    return cls(layer, values, streams)
