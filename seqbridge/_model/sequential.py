"""`Sequential`: a list of layers of any library, run in order."""

from __future__ import annotations

import dataclasses
import functools
import html
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import jax
from jax.sharding import PartitionSpec

from seqbridge._entries import portable
from seqbridge._interface import (
    Call,
    CapturedArrayError,
    Inputs,
    Keywords,
    ask,
    call_of,
    habit,
    mode_of,
    nearest,
)
from seqbridge._layers import (
    FirstPlaces,
    Layer,
    LayerList,
    Place,
    entries_of,
    is_entry,
    leaves,
    sharing_keys,
    walk,
)
from seqbridge._passes import (
    Build,
    FirstRun,
    NeedsInputsError,
    Outputs,
    Recorder,
    Run,
    Summary,
    are_known,
    check_arrays,
    check_inputs,
    check_keywords,
    explained,
    first_call,
    install,
    keyword_specs,
    pure_form,
    run_through,
    specs,
    starts_without_inputs,
    summarize,
    traverse,
)
from seqbridge._sharding import Placement
from seqbridge._state import (
    Keys,
    Stateful,
    Variable,
    as_key,
    commit,
    locked,
    refuse_in_trace,
    same_key,
    split,
)


class Sequential(LayerList):
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
        if len(layers) == 1 and isinstance(layers[0], list | Mapping | Iterator | LayerList):
            given = layers[0]
        elif len(layers) == 1 and type(layers[0]) is tuple and not is_entry(layers[0]):
            given = list(layers[0])
        self._set_first_items(entries_of(given))

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
        """Run the layers in order. The first call with arrays builds a model that isn't built.

        Args:
            *args: The inputs of the first layer.
            training: Training or evaluation, for every layer that knows the difference. The state
                after the call is what the layer's library says.
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

    def _call(self, args: Inputs, call: Call, rng: Any, outputs: list[Any] | None = None) -> Any:
        """Run the layers, and record what each returns in `outputs`."""
        with locked(lambda: (self,) if self.built else self.ancestor_models()):
            first = None
            if not self.built:
                check_arrays(args)
                refuse_in_trace("building a model", jax.tree.leaves((args, call.keywords)))
                first = FirstRun(family=self.family_layers())
                first.enter(self, args, call)
            run = first or Run(Layer.current_tree)
            visitor = run if outputs is None else Recorder(run, outputs)
            changes: dict[Variable, Any] = {}
            keys = self.call_keys(rng, changes)
            out = traverse(self, args, call, visitor, keys, check_plain=outputs is not None)
            if first is not None:
                install(self, first.new)
            for layer, variables in run.states.items():
                changes |= layer.changed_variables(variables)
            commit(changes)
        return out

    def trace(self, /, *args: Any, rng: Any = None, **keywords: Any) -> Outputs:
        """Call the model. Return what every layer returns, by name.

        The last layer's result is the model's.

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
        names = [name for name, _ in walk(self)]
        return Outputs(zip(names, outputs, strict=True))

    def call_keys(self, rng: Any, changes: dict[Variable, Any]) -> Keys:
        """The keys of one call; taking the next one of the stream is one of its changes."""

        def following() -> jax.Array:
            stream = self.make_key_stream()
            changes[stream], key = split(stream.value)
            return key

        if rng is not None:
            return Keys(lambda: as_key(rng), self.initial_keys())
        return Keys(following, self.initial_keys())

    # Building

    def build(
        self, *inputs: Any, seed: int | None = None, key: Any = None, **keywords: Any
    ) -> Self:
        """Make the variables of the layers that have none, from shapes alone.

        Args:
            *inputs: What the first layer takes: arrays, which layers need whose initial values
                depend on the data, or shapes, in which None may be anything:
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
                of a variable, or initial values depend on data and there are only shapes; then
                nothing is built.
        """
        given = call_of(keywords)
        refuse_in_trace("building a model", jax.tree.leaves((inputs, given.keywords)))
        if seed is not None or key is not None:
            start = seed if key is None else as_key(key)
            made_for_shapes = self.built and self.known_inputs is not None
            if made_for_shapes and not same_key(start, self.start_seed):
                raise ValueError(
                    "the model is built: other values are model.assign(model.init(seed, *shapes))"
                )
            self.start_seed = start
        check_inputs(inputs, self)
        call = given.map(keyword_specs, training=True)
        with locked(self.ancestor_models), explained(inputs):
            check_keywords(self, inputs, call)
            pure_form.check_sizes(self, inputs, call)
            known = are_known(inputs, given)
            try:
                self._build(specs(inputs, None), call, wait_for_inputs=known)
            except NeedsInputsError:
                if not known:
                    raise
                self._build_from(inputs, given)
        return self

    def _build(
        self, args: Inputs, call: Call, *, editing: bool = False, wait_for_inputs: bool = False
    ) -> None:
        """Build all or nothing; after an edit, as far as shapes are known."""
        build = Build(family=self.family_layers(), wait_for_inputs=wait_for_inputs)
        build.enter(self, args, call)
        try:
            run_through(self, specs(args), call, build, self.initial_keys())
        except CapturedArrayError:
            raise
        except Exception as error:
            made = build.new.layouts
            left = any(not layer.built and layer not in made for layer in leaves(self))
            waits_for_inputs = editing and isinstance(error, NeedsInputsError)
            if (build.failed and not waits_for_inputs) or (not editing and (left or build.misfit)):
                raise
        install(self, build.new)

    def _build_from(self, inputs: Inputs, call: Call) -> None:
        """Build layers whose initial values depend on what reaches them."""
        run = FirstRun(family=self.family_layers())
        run.enter(self, inputs, call)
        first, keys = first_call(call, self.initial_keys())
        run_through(self, inputs, first, run, keys)
        install(self, run.new)

    def _after_edit(self) -> None:
        if self.known_inputs is not None:
            self._build(*self.known_inputs, editing=True)

    def __setattr__(self, name: str, value: Any) -> None:
        of_a_user = not name.startswith("_") and name not in self.internal_names
        if type(self) is Sequential and of_a_user and name not in self.names:
            check_attribute(Sequential, name, value)
        super().__setattr__(name, value)

    # The pure form

    def init(self, key: Any, /, *inputs: Any, **keywords: Any) -> dict[str, dict[str, Any]]:
        """Return fresh variables, as plain dicts; no value is stored.

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
        check_inputs(inputs, self)
        return pure_form.init(self, start, inputs, call_of(keywords))

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
        """Call the model as a pure function.

        It works in plain `jax.jit`, `jax.grad`, `jax.vmap`, `jax.lax.scan`, and with optax.

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
        return pure_form.apply(self, variables, args, call, rng)

    @property
    def variables(self) -> dict[str, dict[str, Any]]:
        """The arrays now, in dicts of their own.

        `{"params": {name: array}, "state": {name: array}}`, as `apply` and `assign` take them.
        """
        return pure_form.read(self)

    def assign(self, variables: Mapping[str, Mapping[str, Any]]) -> None:
        """Take the arrays of the pure form, all of them, or raise and take none.

        A model that isn't built, and whose `init` was called, is built of them.

        Args:
            variables: `{"params": {...}, "state": {...}}`, or one of the two.

        Raises:
            KeyError: Names are missing, or unknown.
            ValueError: A wrong shape.
            TypeError: A wrong dtype.
            RuntimeError: The model isn't built, and its `init` wasn't called.
        """
        pure_form.assign(self, variables)

    # Devices

    def shard(
        self,
        mesh: Any,
        rules: Mapping[str, PartitionSpec] | Sequence[tuple[str, PartitionSpec]] = (),
        *,
        logical: Mapping[str, Any] | None = None,
    ) -> Self:
        """Lay the variables out on a mesh of devices. Calls mean what they did before.

        Layers that come later are laid out by the same rules. An assignment keeps the layout.

        Args:
            mesh: A `jax.sharding.Mesh`, such as `jax.make_mesh((4, 2), ("data", "model"))`.
            rules: From a regular expression over names to a `jax.sharding.PartitionSpec`, in order:
                the first that is found in a variable's name holds. Without any the variable is laid
                out as its own library says, or else replicated, which is all that data parallelism
                needs. An axis of the batch may stand in a rule: the variable is stored in parts,
                and put together where it is used.
            logical: From the names that libraries give to dimensions to axes of the mesh:
                `{"embed": None, "mlp": "model"}`. What is no axis of the mesh and isn't named here
                is replicated.

        Returns:
            The model.

        Raises:
            RuntimeError: The model isn't built, or this is a JAX transform.
            TypeError, ValueError: What is wrong with a rule, with its variable; then nothing has
                moved.

        Examples:
            >>> import jax, jax.numpy as jnp
            >>> from seqbridge import Sequential
            >>> model = Sequential([lambda x, w=jnp.ones((4, 8)): x @ w])
            >>> mesh = jax.make_mesh((1,), ("data",))
            >>> model.shard(mesh, {"w$": jax.sharding.PartitionSpec(None, "data")})
            Sequential(
              [0] function <lambda>
            )
            >>> tuple(model[0].w.value.sharding.spec)
            (None, 'data')
        """
        refuse_in_trace("laying a model out")
        if not self.built:
            raise RuntimeError(
                "the model isn't built: call model.build(...) first, then model.shard(mesh, rules)"
            )
        self.lay_out(Placement(mesh, rules, logical))
        return self

    # Looks

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if self.known_inputs is not None:
            args, call = self.known_inputs
            given = portable((dict(call.keywords), dict(call.per_layer)))
            call = dataclasses.replace(call, keywords=given[0], per_layer=given[1])
            state["known_inputs"] = portable(args), call
        return state

    def summary(self, *inputs: Any, **keywords: Any) -> Summary:
        """Return a table of the layers; nothing is computed.

        It shows each layer's library, entry, shapes, variables and floating-point operations. Print
        it, or let a notebook show it. The model needn't be built, nor is it built by this.

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
        return summary_of(self, inputs, keywords)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        """Return what a notebook shows.

        As `_repr_html_`, treescope would show it in place of its tree.
        """
        try:
            shown = summary_of(self, (), {}, count=False)._repr_html_()
        except Exception:  # a notebook must be able to show what is broken, too
            shown = f"<pre>{html.escape(repr(self))}</pre>"
        return {"text/plain": repr(self), "text/html": shown}

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *(name for name in self.names if name is not None)})

    def _ipython_key_completions_(self) -> list[str]:
        return [n for n in self.names if n is not None]

    def __repr__(self) -> str:
        return _text(self, (), FirstPlaces())


def _text(model: LayerList, place: Place, places: FirstPlaces) -> str:
    """The lines of a model that stands at a place of the one that is shown."""
    lines: list[str] = []
    for i, (child, item) in enumerate(model.named_children()):
        here = (*place, child)
        if isinstance(item, Layer):
            text = " ".join([repr(item), places.add(here, sharing_keys(item))]).rstrip()
        elif type(item).__repr__ is Sequential.__repr__:
            text = _text(item, here, places)
        else:
            text = repr(item)
        name = model.names[i]
        label = f"[{i}] {name}: " if name else f"[{i}] "
        lines.append(f"  {label}{text}\n".replace("\n", "\n  ").removesuffix("  "))
    body = "\n" + "".join(lines) if lines else ""
    return f"{type(model).__name__}({body})"


def summary_of(
    model: LayerList,
    inputs: Inputs,
    keywords: Keywords,
    *,
    count: bool = True,
) -> Summary:
    """Return the summary of a model.

    Args:
        model: The model.
        inputs: As for `build`. Without any, those that the model was built for.
        keywords: Those of a call.
        count: Whether floating-point operations are counted.
    """
    call = call_of({name: value for name, value in keywords.items() if name != "rng"})
    if inputs or starts_without_inputs(model):
        check_inputs(inputs, model)
        return summarize(model, inputs, call, given=True, count=count)
    check_keywords(model, (), call)
    if model.known_inputs is not None:
        inputs, built_for = model.known_inputs
        per_layer = call.per_layer or built_for.per_layer
        call = Call(call.training, {**built_for.keywords, **call.keywords}, per_layer)
    return summarize(model, inputs, call, given=False, count=count)


def as_model(x: Any) -> tuple[LayerList, bool]:
    """Return the model that holds `x`, and whether `x` is a layer or an entry, and no model."""
    if isinstance(x, LayerList):
        return x, False
    if isinstance(x, list | Mapping):
        return Sequential(x), False
    return Sequential([x]), True


def check_attribute(cls: type, name: str, value: Any) -> None:
    """Raise, or warn, if setting an attribute of a model wouldn't do what people expect of it."""
    own = getattr(cls, name, None)
    if isinstance(own, property):
        return
    cure = habit(name) or nearest(name, ("trainable",), cutoff=0.8)
    if cure or callable(own):
        raise AttributeError(f"{name} isn't set{cure or ': it is a method'}")
    if _is_layer(value):
        warnings.warn(
            f"model.{name} = ... sets an attribute, which isn't run, trained or saved: del "
            f"model.{name}, then model.extend({{{name!r}: ...}}) puts it at the end of the list",
            stacklevel=3,
        )


def _is_layer(value: Any) -> bool:
    if isinstance(value, Stateful):
        return callable(value)  # a model or a layer, rather than variables or an optimizer
    cls = type(value)
    if isinstance(value, functools.partial) and isinstance(value.func, type):
        cls = value.func
    try:
        return ask(value, cls) is not None
    except TypeError:  # of some library, but no layer
        return False


Sequential.plain_call = Sequential.__call__
Layer.model_class = Sequential
