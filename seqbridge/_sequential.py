"""`Sequential`: a list of layers of any library, run in order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Self

import jax

from seqbridge import _functional
from seqbridge._adapt import check_attribute
from seqbridge._build import (
    Build,
    FirstRun,
    check_arrays,
    check_inputs,
    explained,
    keyword_specs,
    specs,
    take,
)
from seqbridge._dispatch import Call, call_of, mode_of
from seqbridge._forward import Run, check_keywords, run_through, traverse
from seqbridge._keys import Keys, as_key, same_key, split
from seqbridge._layer import Layer
from seqbridge._list import entries_of, first_names, is_entry
from seqbridge._looks import Looks
from seqbridge._outputs import Outputs, Watched
from seqbridge._sharing import share
from seqbridge._stateful import held
from seqbridge._structure import Item, leaves, walk
from seqbridge._trace import commit, refuse_in_trace
from seqbridge._variable import Variable


class Sequential(Looks):
    """A list of layers of any JAX library, and of functions, that runs them in order.

    It owns the variables of all of them under one set of names and gives every layer the keyword
    arguments that it understands. A tuple that one layer returns is spread over the inputs of the
    next.

    Args:
        *layers: A list of entries; or the entries themselves; or a mapping from names to entries.
            An entry is a module, a `partial` of a module class, a transform, a function, a `Layer`
            or another `Sequential`.
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
        start = seed if key is None else key
        super().__init__(start if type(start) is int else as_key(start))
        given: Any = list(layers)
        if len(layers) == 1 and isinstance(layers[0], list | Mapping | Iterator | Looks):
            given = layers[0]
        elif len(layers) == 1 and type(layers[0]) is tuple and not is_entry(layers[0]):
            given = list(layers[0])
        items, names = self._admit(entries_of(given), [])
        names = first_names(items, names)
        self._check_names(names)
        self._layers, self._labels = items, names
        share(items, [])
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
            training: Training or evaluation, for every layer that knows the difference. State such
                as batch statistics changes in training only.
            rng: A PRNG key for this call, in place of the next one of the model's own stream.
            per_layer: Keywords for single layers, by name or position: `{"conv": {...}, 3: {...}}`.
            **keywords: Each layer gets those that it names.

        Returns:
            What the last layer returns.

        Raises:
            TypeError: A keyword that no layer takes, an argument that a layer misses, or no mode
                where layers need one.
            Exception: What a layer raises, with a note that names the layer and says what reached
                it.
        """
        return self._call(args, Call(mode_of(training), keywords, per_layer or {}), rng)

    def _call(
        self, args: tuple[Any, ...], call: Call, rng: Any, outputs: list[Any] | None = None
    ) -> Any:
        """Runs the layers, and notes what each returns in `outputs`."""
        with held(lambda: (self,) if self.built else self._above()):
            first = None
            if not self.built:
                check_arrays(args)
                refuse_in_trace("building a model", jax.tree.leaves((args, call.keywords)))
                first = FirstRun(taken=self._family())
                first.enter(self, args, call)
            run = first or Run(Layer._tree)
            changes: dict[Variable, Any] = {}
            visitor = run if outputs is None else Watched(run, outputs)
            out = traverse(
                self, args, call, visitor, self._keys(rng, changes), plain=outputs is not None
            )
            if first is not None:
                take(self, first)
            for layer, variables in run.states.items():
                changes |= layer._changes(variables)
            commit(changes)
        return out

    def trace(self, /, *args: Any, rng: Any = None, **keywords: Any) -> Outputs:
        """Calls the model, and returns what every layer returns, by name. The last one's is the model's.

        Args:
            *args: As for a call.
            rng: As for a call.
            **keywords: As for a call, with `training` and `per_layer`.

        Examples:
            >>> import jax.numpy as jnp
            >>> model = Sequential({"double": lambda x: 2 * x, "sum": jnp.sum})
            >>> outputs = model.trace(jnp.ones(3))
            >>> list(outputs)
            ['(Sequential).double(<lambda>)', '(Sequential).sum(sum)']
            >>> float(outputs["sum"])
            6.0
        """
        outputs: list[Any] = []
        self._call(args, call_of(keywords), rng, outputs)
        return Outputs(zip((name for name, _ in walk(self)), outputs, strict=True))

    def _keys(self, rng: Any, changes: dict[Variable, Any]) -> Keys:
        """The keys of one call; taking the next one of the stream is one of its changes."""

        def following() -> jax.Array:
            stream = self._make_stream()
            changes[stream], key = split(stream.value)
            return key

        return Keys(following if rng is None else lambda: as_key(rng), self._initial_keys())

    # Building

    def build(
        self, *inputs: Any, seed: int | None = None, key: Any = None, **keywords: Any
    ) -> Self:
        """Makes the variables of the layers that have none, from shapes alone.

        Args:
            *inputs: What the first layer takes: arrays, or shapes, in which None may be anything:
                `model.build((None, 28, 28, 1))`; or, for other inputs than floats,
                `jax.ShapeDtypeStruct((1, 8), jnp.int32)`.
            seed: In place of the seed that the model was made with.
            key: Likewise, a PRNG key.
            **keywords: What layers need at a call; for arrays also their shapes, as
                `jax.ShapeDtypeStruct`s or as tuples with a None.

        Returns:
            The model.

        Raises:
            RuntimeError: Inside a JAX transform.
            TypeError, ValueError: What a layer raises for these shapes, or a None decides the shape
                of a variable; then nothing is built.
        """
        given = call_of(keywords)
        refuse_in_trace("building a model", jax.tree.leaves((inputs, given.keywords)))
        if seed is not None or key is not None:
            start = seed if key is None else as_key(key)
            if self.built and self._inputs is not None and not same_key(start, self._seed):
                raise ValueError(
                    "the model is built: other values are model.assign(model.init(seed, *shapes))"
                )
            self._seed = start
        check_inputs(inputs)
        call = given.map(keyword_specs, training=True)
        with held(self._above), explained(inputs):
            check_keywords(self, inputs, call)
            _functional.check_sizes(self, inputs, call)
            self._build(specs(inputs, None), call)
        return self

    def _build(self, args: tuple[Any, ...], call: Call, *, editing: bool = False) -> None:
        """Builds all or nothing; after an edit, as far as shapes are known."""
        build = Build(taken=self._family())
        build.enter(self, args, call)
        try:
            run_through(self, specs(args), call, build, self._initial_keys())
        except Exception:
            left = any(
                not layer.built and layer not in build.layouts for layer in leaves(self._layers)
            )
            if build.failed or (not editing and (left or build.misfit)):
                raise
        take(self, build)

    def _after_edit(self) -> None:
        if self._inputs is not None:
            self._build(*self._inputs, editing=True)

    def _sharing(self, layers: list[Item], names: list[str | None]) -> Any:
        made = super()._sharing(layers, names)
        if not layers or not self._layers or layers[0] is not self._layers[0]:
            made._inputs = None  # another layer comes first: what reaches it isn't known
        return made

    def __setattr__(self, name: str, value: Any) -> None:
        if type(self) is Sequential and name[0] != "_" and name not in self.names:
            check_attribute(Sequential, name, value)
        super().__setattr__(name, value)

    # The pure form

    def init(self, key: Any, /, *inputs: Any, **keywords: Any) -> dict[str, dict[str, Any]]:
        """Fresh variables, as plain dicts; nothing is stored.

        Args:
            key: A PRNG key or a seed.
            *inputs: As for `build`.
            **keywords: As for `build`.

        Returns:
            `{"params": {name: array}, "state": {name: array}}`, what `apply` takes.

        Examples:
            >>> import jax.numpy as jnp
            >>> w = jnp.eye(2)
            >>> model = Sequential([lambda x, w=w: x @ w])
            >>> variables = model.init(0, (1, 2))
            >>> list(variables["params"])
            ['(Sequential)[0](<lambda>).w']
            >>> model.apply(variables, jnp.ones((1, 2)))[0]
            Array([[1., 1.]], dtype=float32)
        """
        start = as_key(key)
        check_inputs(inputs)
        return _functional.init(self, start, inputs, call_of(keywords))

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
        call = Call(mode_of(training), keywords, per_layer or {})
        return _functional.apply(self, variables, args, call, rng)

    @property
    def variables(self) -> dict[str, dict[str, Any]]:
        """The arrays now: `{"params": {name: array}, "state": {name: array}}`, in dicts of their own."""
        return _functional.read(self)

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
        _functional.assign(self, variables)


Sequential._in_order = Sequential.__call__
