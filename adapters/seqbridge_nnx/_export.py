"""The way out: a layer as an NNX module."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, TypeAlias

import jax
from flax import nnx

from seqbridge import PureLayer, Variables, as_method, nest, training_of, unnest

_BOXES = {"params": nnx.Param, "state": nnx.BatchStat}
Path: TypeAlias = tuple[str, ...]


class _Kept:
    """What a module runs, as a static attribute. Not of its class, since JAX keeps classes of modules for good."""

    def __init__(self, layer: PureLayer):
        self.layer = layer

    def __deepcopy__(self, memo: Any) -> _Kept:
        return self


class _Exported(nnx.Module):
    """A layer of other libraries. Its variables are attributes of it, `module.Conv_0.kernel`."""

    places: ClassVar[Mapping[Path, type[nnx.Variable]]]

    def __init__(self, layer: PureLayer, values: Variables, rngs: nnx.Rngs):
        self._kept = _Kept(layer)
        mode = layer.signature and layer.signature.parameters.get("training")
        self.deterministic = mode is not None and mode.default is False
        if layer.takes_key:
            self.rngs = rngs.fork()
        given = unnest(values)
        for name, tree in nest(
            {place[1:]: box(given[place]) for place, box in self.places.items()}
        ).items():
            if hasattr(self, name):
                raise ValueError(
                    f"{name!r} is an attribute of every NNX module: give the layer another name"
                )
            setattr(self, name, _dicts(tree))

    def _run(
        self, args: tuple[Any, ...], training: bool | None, rngs: Any, keywords: dict[str, Any]
    ) -> Any:
        def key() -> jax.Array:
            stream = rngs or getattr(self, "rngs", None)
            if stream is None:  # whatever was known of the model, it drew nothing
                raise TypeError("a layer draws random numbers: give the call rngs=nnx.Rngs(...)")
            return stream() if isinstance(stream, nnx.RngStream) else stream.dropout()

        if training is None and training_of(keywords) is None:
            training = not self.deterministic
        out, new = self._kept.layer.apply(
            self.seqbridge_variables(), key, *args, training=training, **keywords
        )
        nnx.update(self, new.get("state", {}))
        return out

    def set_view(
        self, deterministic: bool | None = None, use_running_average: bool | None = None
    ) -> None:
        """Lets `nnx.view` decide on the mode."""
        mode = use_running_average if deterministic is None else deterministic
        self.deterministic = self.deterministic if mode is None else mode

    def seqbridge_variables(self) -> Variables:
        """The arrays now, for `seqbridge.from_native`."""
        found = {
            tuple(map(str, path)): variable for path, variable in nnx.to_flat_state(nnx.state(self))
        }
        return {
            "params": {},
            "state": {},
            **nest({place: found[place[1:]][...] for place in self.places}),
        }


def _dicts(tree: Any) -> Any:
    return (
        nnx.Dict({name: _dicts(inner) for name, inner in tree.items()})
        if isinstance(tree, dict)
        else tree
    )


def export(layer: PureLayer, *, rngs: nnx.Rngs | int | None = None) -> nnx.Module:
    """A model, a layer or an entry of any library as a Flax NNX module.

    It is a module like any other, for `nnx.jit`, `nnx.grad`, `nnx.Optimizer`, `nnx.split`, and as
    an attribute of other modules. Parameters are `nnx.Param`, frozen ones plain `nnx.Variable`s,
    state is `nnx.BatchStat`, each under its readable name: `module.Conv_0.kernel`. `train()` and
    `eval()` switch the mode; it starts in training. Random numbers come from the stream `dropout`.

    Args:
        layer: The neutral form of what goes out.
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
            f"model.build(...) "
            "before, or give the shapes, sb.to_nnx(x, (None, 28, 28, 1))"
        )

    def call(
        self: _Exported, *args: Any, training: bool | None = None, rngs: Any = None, **keywords: Any
    ) -> Any:
        return self._run(args, training, rngs, keywords)

    as_method(call, layer, *(["rngs"] if layer.takes_key else []))
    streams = nnx.Rngs(rngs or 0) if isinstance(rngs, int | None) else rngs
    values = layer.ready or layer.init(layer.seed if rngs is None else streams.params)
    places = {p: nnx.Variable if p in layer.frozen() else _BOXES[p[0]] for p in unnest(values)}
    layer = dataclasses.replace(layer, ready=None)  # which the module has
    own = {"__call__": call, "__module__": __name__, "places": places}
    cls: Any = type(layer.label, (_Exported,), own)
    return cls(layer, values, streams)
