"""`Sequential`: a list of layers of any library, run in order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax

from seqbridge._build import Build, DoesNotFit, specs
from seqbridge._collection import check_names
from seqbridge._dispatch import Call, MissingArgument
from seqbridge._forward import Keys, Run, fold_in, run_through, split, traverse, walk
from seqbridge._layer import Layer, Layout
from seqbridge._list import Item, LayerList, _entries, _leaves, _unify, stream_namer
from seqbridge._pure import Variables
from seqbridge._stateful import edits
from seqbridge._trace import commit, refuse_in_trace
from seqbridge._variable import Variable, cast

_STREAM = 2**31 - 1  # the position that the stream of keys is folded with; no list is that long


class Sequential(LayerList):
    """A list of layers of any JAX library, and of functions, that runs them in order.

    It owns the variables of all of them under one set of names and gives every layer the keyword arguments that it
    understands. A tuple that one layer returns is spread over the inputs of the next.

    Args:
        *layers: A list of entries; or the entries themselves; or a mapping from names to entries. An entry is a
            module, a `partial` of a module class, a transform, a function, a `Layer` or another `Sequential`.
        seed: What initial values and random draws start from.
        key: A PRNG key in place of the seed, typed or raw.

    Raises:
        TypeError: Something is no entry; the message says what to write instead.
        ValueError: A name is taken twice or can't be a name.

    Examples:
        >>> import jax.numpy as jnp
        >>> model = Sequential([lambda x, slope=0.1: jnp.maximum(x, x * slope), jnp.sum])
        >>> float(model(jnp.array([-1.0, 2.0])))
        1.899999976158142
        >>> float(model(jnp.array([-1.0, 2.0]), slope=0.5))
        1.5
        >>> model
        Sequential(
          [0] function <lambda>
          [1] function sum
        )
    """

    def __init__(self, *layers: Any, seed: int = 0, key: Any = None):
        super().__init__()
        self._seed = seed if key is None else as_key(key)
        self._inputs: tuple[tuple[Any, ...], Call] | None = None
        given = layers
        if len(layers) == 1 and (type(layers[0]) is tuple or isinstance(layers[0], list | Mapping | Iterator | LayerList)):
            given = layers[0]
        items, names = self._admit(_entries(given), [])
        self._check_names(names)
        self._layers, self._labels = items, names
        _unify(items)
        self._adopt()

    # Calls

    def __call__(
        self,
        /,
        *args: Any,
        training: bool | None = None,
        rng: Any = None,
        per_layer: Mapping[Any, Mapping[str, Any]] | None = None,
        **keywords: Any,
    ) -> Any:
        """Runs the layers in order. The first call with arrays builds a model that isn't built.

        Args:
            *args: The inputs of the first layer.
            training: Training or evaluation, for every layer that knows the difference. State such as batch
                statistics changes in training only.
            rng: A PRNG key for this call, in place of the next one of the model's own stream.
            per_layer: Keywords for single layers, by name or position: `{"conv": {...}, 3: {...}}`.
            **keywords: Each layer gets those that it names.

        Returns:
            What the last layer returns.

        Raises:
            TypeError: A keyword that no layer takes, an argument that a layer misses, or no mode where layers need
                one.
            Exception: What a layer raises, with a note that names the layer and says what reached it.
        """
        call = Call(training, keywords, per_layer or {})
        with self._locks():
            if not self.built:
                refuse_in_trace("building a model", jax.tree.leaves((args, keywords)))
                self._build(args, call)
            run, drawn = Run(Layer._tree), {}
            out = traverse(self, args, call, run, self._keys(rng, drawn))
            for layer, variables in run.states.items():
                drawn |= layer._changes(variables)
            commit(drawn)
        return out

    def _keys(self, rng: Any, drawn: dict[Variable, Any]) -> Keys:
        """The keys of one call; taking the next one of the stream is noted in `drawn`."""

        def following() -> jax.Array:
            assert self._stream is not None
            drawn[self._stream], key = split(self._stream.value)
            return key

        return Keys(following) if rng is None else Keys(lambda: as_key(rng))

    # Building

    def build(self, *inputs: Any, seed: int | None = None, key: Any = None, **keywords: Any) -> Sequential:
        """Makes the variables of the layers that have none, from shapes alone.

        Args:
            *inputs: What the first layer takes: arrays, `jax.ShapeDtypeStruct`s or shapes, in which None may be
                anything: `model.build((None, 28, 28, 1))`.
            seed: In place of the seed that the model was made with.
            key: Likewise, a PRNG key.
            **keywords: What layers need at a call.

        Returns:
            The model.

        Raises:
            RuntimeError: Inside a JAX transform.
            TypeError, ValueError: What a layer raises for these shapes; then nothing is built.
        """
        refuse_in_trace("building a model", jax.tree.leaves((inputs, keywords)))
        if seed is not None or key is not None:
            self._seed = seed if key is None else as_key(key)
        keywords.pop("training", None)
        per_layer = keywords.pop("per_layer", {})
        with self._lock:
            self._build(inputs, Call(True, keywords, per_layer))
        return self

    def _build(self, args: tuple[Any, ...], call: Call, before: list[Item] | None = None) -> None:
        """Builds all or nothing. `before`: an edit asks, and the list was this."""
        args, keywords = specs((args, dict(call.keywords)))
        call = Call(True, keywords, specs(dict(call.per_layer)))
        build = Build(old=frozenset(_leaves(before or ())))
        root = Keys(lambda: as_key(self._seed))
        if before is None:
            traverse(self, args, call, build, root)
        else:
            try:
                run_through(self, args, call, build, root)
            except (DoesNotFit, MissingArgument):
                pass  # what comes after is built by the next call, which says what is wrong, if anything is
        if self._stream is None:
            self._stream = Variable(fold_in(root.key, _STREAM), kind="rng", collection="rng", name="rng")
            self._stream._lock = self._lock
            self._stream._namer = stream_namer(self)
        for layer, layout in build.layouts.items():
            layer._fill(layout, self._lock)
        for model, inputs in {self: (args, call), **build.inputs}.items():
            model._inputs = inputs
        edits.count += 1

    def _after_edit(self, before: list[Item]) -> None:
        if self._inputs is not None and self._stream is not None:
            args, call = self._inputs
            self._build(args, call, before)

    def _sharing(self, layers: list[Item], names: list[str | None]) -> Any:
        made = super()._sharing(layers, names)
        if not layers or not self._layers or layers[0] is not self._layers[0]:
            made._inputs = None  # another layer comes first: what reaches it isn't known
        return made

    # The pure form

    def init(self, key: Any, /, *inputs: Any, **keywords: Any) -> dict[str, dict[str, Any]]:
        """Fresh variables, as plain dicts; nothing is stored.

        Args:
            key: A PRNG key or a seed.
            *inputs: As for `build`.
            **keywords: As for `build`.

        Returns:
            `{"params": {name: array}, "state": {name: array}}`, what `apply` takes.
        """
        keywords.pop("training", None)
        call = Call(True, keywords, keywords.pop("per_layer", {}))
        args, options = specs((inputs, keywords))
        build = Build(fresh=True)
        traverse(self, args, Call(True, options, specs(dict(call.per_layer))), build, Keys(lambda: as_key(key)))
        return self._pure_form({layer: layout.arrays for layer, layout in build.layouts.items()}, build.layouts)

    def apply(
        self,
        variables: Mapping[str, Mapping[str, Any]],
        /,
        *args: Any,
        rng: Any = None,
        training: bool | None = None,
        per_layer: Mapping[Any, Mapping[str, Any]] | None = None,
        **keywords: Any,
    ) -> tuple[Any, dict[str, dict[str, Any]]]:
        """The model as a pure function, for plain `jax.jit`, `jax.grad`, `jax.vmap`, `jax.lax.scan` and optax.

        Args:
            variables: What `init` or `variables` returns.
            *args: The inputs of the first layer.
            rng: A PRNG key, for layers that draw random numbers.
            training: As for a call.
            per_layer: As for a call.
            **keywords: As for a call.

        Returns:
            The outputs, and the variables after the call.

        Raises:
            KeyError: Names are missing, or unknown.
        """
        call = Call(training, keywords, per_layer or {})
        layouts = self._layouts(args, call)
        names = self._slots(layouts)
        given = {name: array for part in variables.values() for name, array in part.items()}
        check_names("apply", given, names)
        arrays: dict[Layer, list[Any]] = {}
        for name, (layer, _) in names.items():
            arrays.setdefault(layer, []).append(given[name])

        def tree(layer: Layer) -> Variables:
            return layouts[layer].tree(arrays.get(layer, []))

        def no_key() -> jax.Array:
            raise TypeError("a layer draws random numbers: give a key, model.apply(variables, x, rng=key)")

        run = Run(tree)
        out = traverse(self, args, call, run, Keys(no_key if rng is None else lambda: as_key(rng)))
        for layer, new in run.states.items():
            arrays[layer] = layouts[layer].flatten("the state after the call", new)
        return out, self._pure_form(arrays, layouts)

    def _layouts(self, args: tuple[Any, ...], call: Call) -> Mapping[Layer, Layout]:
        """The layout of every layer, found from shapes where a layer isn't built."""
        layouts = {layer: layer._layout for layer in _leaves(self._layers) if layer._layout is not None}
        if len(layouts) < len(set(_leaves(self._layers))):
            shapes, keywords = specs((args, dict(call.keywords)))
            build = Build(abstract=True)
            traverse(
                self, shapes, Call(True, keywords, specs(dict(call.per_layer))), build, Keys(lambda: jax.random.key(0))
            )
            layouts |= build.layouts
        return layouts

    def _slots(self, layouts: Mapping[Layer, Layout]) -> dict[str, tuple[Layer, str]]:
        """Every variable once: its first name, its layer and its kind, in the order of the layer's arrays."""
        first: dict[Layer, str] = {}
        for prefix, layer in walk(self):
            first.setdefault(layer, prefix)
        return {f"{prefix}.{s.shown}": (layer, s.kind) for layer, prefix in first.items() for s in layouts[layer].slots}

    def _pure_form(self, arrays: Mapping[Layer, list[Any]], layouts: Mapping[Layer, Layout]) -> dict[str, dict[str, Any]]:
        parts: dict[str, dict[str, Any]] = {"params": {}, "state": {}}
        leaves = {layer: iter(own) for layer, own in arrays.items()}
        for name, (layer, kind) in self._slots(layouts).items():
            parts["params" if kind == "params" else "state"][name] = next(leaves[layer])
        return parts

    @property
    def variables(self) -> dict[str, dict[str, Any]]:
        """The arrays now: `{"params": {name: array}, "state": {name: array}}`, in dicts of their own."""
        layouts = {layer: layer._layout for layer in _leaves(self._layers) if layer._layout is not None}
        if not self.built:
            raise RuntimeError("the model isn't built: it has variables after model.build(...) or the first call")
        return self._pure_form({layer: [v.value for v in layer._variables] for layer in layouts}, layouts)

    def assign(self, variables: Mapping[str, Mapping[str, Any]]) -> None:
        """Takes the arrays of the pure form, all of them, or raises and takes none.

        Args:
            variables: `{"params": {...}, "state": {...}}`, or one of the two.

        Raises:
            KeyError: Names are missing, or unknown.
            ValueError: A wrong shape.
            TypeError: A wrong dtype.
            RuntimeError: The model isn't built.
        """
        check_names("assign", (k for k in variables if k not in ("params", "state")), ())
        changes = {}
        table = self._by_name()
        with self._locks():
            for kind, now in self.variables.items():
                if kind in variables:
                    check_names("assign", variables[kind], now)
                    changes |= {table[n]: cast(n, variables[kind][n], old) for n, old in now.items()}
            commit(changes)

    # Looks

    def __repr__(self) -> str:
        lines = []
        for i, (name, item) in enumerate(zip(self._labels, self._layers, strict=True)):
            text = repr(item).replace("\n", "\n  ")
            lines.append(f"  [{i}] {f'{name}: ' if name else ''}{text}")
        body = "\n".join(lines)
        return f"{type(self).__name__}(\n{body}\n)" if lines else f"{type(self).__name__}()"


def as_key(key: Any) -> jax.Array:
    """A typed PRNG key from a seed, a raw key or a typed one.

    Raises:
        TypeError: It is none of these.
    """
    if isinstance(key, int) and not isinstance(key, bool):
        return jax.random.key(key)
    dtype = getattr(key, "dtype", None)
    if dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) and key.shape == ():
        return key
    if dtype == "uint32" and key.ndim == 1:
        return jax.random.wrap_key_data(key)
    raise TypeError(f"a key is an int, jax.random.key(0) or jax.random.PRNGKey(0), not {key!r:.60}")


