"""`Optimizer`: a gradient transformation, its state, and the variables that it updates."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import jax
import jax.numpy as jnp
import numpy as np

from seqbridge._interface import check_names
from seqbridge._state import (
    CacheKey,
    Stateful,
    Variable,
    cached_by_version,
    cast,
    commit,
    locked,
    refuse_in_trace,
    serial,
    version,
)
from seqbridge._transforms.partition import is_differentiable
from seqbridge._variables import Filter, VarCollection, VariableHolder


class Transformation(Protocol):
    """Two pure functions: a `GradientTransformation` of optax."""

    @property
    def init(self) -> Any:
        """The function from parameters to a state."""

    @property
    def update(self) -> Any:
        """The function from gradients, state and parameters to updates and a new state."""


class _Fitted(NamedTuple):
    """A state, and the parameters that it fits.

    Attributes:
        params: The variables that are updated, by name.
        state: The variables of the state.
        names: Their names.
        treedef: The structure of the state, as the transformation has it; None: there is none yet.
    """

    params: dict[str, Variable] = {}  # noqa: RUF012  (nobody changes it)
    state: tuple[Variable, ...] = ()
    names: tuple[str, ...] = ()
    treedef: Any = None


class Optimizer(VariableHolder):
    """Any optax transformation, with its state kept in variables.

    The state follows the model: after an edit, the layers that stayed keep their moments and new
    layers get fresh ones. A deep copy has a copy of the model, too: `copy.deepcopy((model,
    optimizer))` copies a pair.

    Args:
        model: A model, a layer or a collection.
        transformation: Such as `optax.adam(1e-3)`.
        wrt: Which of the trainable variables are updated; see `value_and_grad`. By default all.

    Examples:
        >>> import jax.numpy as jnp, optax
        >>> w = Variable(jnp.array([1.0, 2.0]), name="w")
        >>> optimizer = Optimizer(w, optax.sgd(0.5))
        >>> optimizer.update({"w": jnp.array([2.0, 2.0])})
        >>> w.value
        Array([0., 1.], dtype=float32)
    """

    internal_names: ClassVar[frozenset[str]] = VariableHolder.internal_names | {"trainable"}

    def __init__(
        self, model: Stateful, transformation: Transformation, *, wrt: Filter | None = None
    ):
        if not isinstance(model, Stateful):
            raise TypeError(
                "an Optimizer takes a model, a layer or a collection, and then the transformation: "
                f"sb.Optimizer(model, adam(1e-3)), not a {type(model).__name__}"
            )
        if not all(callable(getattr(transformation, part, None)) for part in ("init", "update")):
            raise TypeError(
                "an Optimizer takes a gradient transformation that was made, such as adam(1e-3), "
                f"not {transformation!r:.60}"
            )
        self._serial = 0
        self._guard = threading.RLock()
        self.transformation = transformation
        self._model, self._wrt = model, wrt
        self._source = self._trained()
        self._fitted = _Fitted()
        everything = VarCollection(model.variables_by_name)
        if wrt is not None and getattr(model, "built", True) and not everything.subset(wrt):
            raise ValueError(
                f"there is nothing to update: wrt={wrt!r:.60} lets no variable through"
            )
        self._follow()

    @property
    def transformation(self) -> Transformation:
        """The transformation of gradients into updates. Another one is another program."""
        return self._transformation

    @transformation.setter
    def transformation(self, new: Transformation) -> None:
        self._transformation, self._serial = new, serial()
        version.bump()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("lr", "learning_rate", "weight_decay", "momentum", "param_groups", "tx"):
            raise AttributeError(
                f"an Optimizer has no {name!r}: set optimizer.transformation, or give the "
                "transformation a schedule"
            )
        if name == "trainable":
            raise AttributeError("an Optimizer isn't trained: set model.trainable, or wrt=")
        object.__setattr__(self, name, value)

    def _trained(self) -> VarCollection:
        """Return the variables that are updated, live."""
        everything = VarCollection(self._model.variables_by_name)
        return everything.subset(is_differentiable).subset(self._wrt)

    def update(self, gradients: Mapping[str, Any], /, *more: Any, **extra: Any) -> None:
        """Take one step: change the parameters and the optimizer's state.

        Args:
            gradients: From variable name to array, as `value_and_grad` returns it. With `wrt=`
                those of the model's other variables may be there, too.
            *more: Nothing: an optimizer knows its model.
            **extra: More arguments of the transformation's `update`; the loss, for instance.

        Raises:
            KeyError: Gradients are missing, or are of no variable of this optimizer.
            ValueError: A gradient has another shape than its variable.
        """
        if more or isinstance(gradients, Stateful) or not isinstance(gradients, Mapping):
            got = ", ".join(type(given).__name__ for given in (gradients, *more))
            raise TypeError(
                "an Optimizer knows its variables: write optimizer.update(gradients), arrays by "
                f"name; got {got}"
            )
        with locked(lambda: [self]):
            fitted = self._follow()
            others = self._model.variables_by_name() if self._wrt is not None else {}
            given = [name for name in gradients if name in fitted.params or name not in others]
            check_names(
                "the gradients don't belong to the optimizer's variables", given, fitted.params
            )
            params = {name: variable.value for name, variable in fitted.params.items()}
            for name, param in params.items():
                shape = np.shape(gradients[name])
                if shape != param.shape:
                    raise ValueError(
                        f"{name} has shape {param.shape}: its gradient can't have shape {shape}"
                    )
            own = {name: gradients[name] for name in params}
            before = jax.tree.unflatten(fitted.treedef, [v.value for v in fitted.state])
            updates, after = self.transformation.update(own, before, params, **extra)
            new: dict[Variable, Any] = {}
            for name, variable in fitted.params.items():
                param = params[name]
                new[variable] = param + jnp.asarray(updates[name], param.dtype)
            leaves = fitted.treedef.flatten_up_to(after)
            for variable, leaf in zip(fitted.state, leaves, strict=True):
                new[variable] = cast(variable.name, leaf, variable.value)
            commit(new)

    @property
    def native(self) -> Any:
        """The state in the transformation's own structure, with the arrays of now."""
        fitted = self._follow()
        return jax.tree.unflatten(fitted.treedef, [variable.value for variable in fitted.state])

    def load_native(self, state: Any, /) -> None:
        """Take a state in the transformation's own structure, or raise and take nothing.

        Args:
            state: What `native` returns, or the transformation itself for the same parameters.

        Raises:
            ValueError: Another structure, or a wrong shape.
            TypeError: A wrong dtype.
        """
        with locked(lambda: [self]):
            fitted = self._follow()
            leaves = fitted.treedef.flatten_up_to(state)
            changes: dict[Variable, Any] = {}
            for variable, leaf in zip(fitted.state, leaves, strict=True):
                changes[variable] = cast(variable.name, leaf, variable.value)
            commit(changes)

    def vars(self) -> VarCollection:
        """Return the variables that hold the optimizer's state, live."""
        return VarCollection(self._own)

    def _own(self) -> dict[str, Variable]:
        fitted = self._follow()
        return dict(zip(fitted.names, fitted.state, strict=True))

    def variables_by_name(self) -> Mapping[str, Variable]:
        return self._own()

    def own_variables(self) -> tuple[Variable, ...]:
        fitted = self._follow()
        return (*fitted.params.values(), *fitted.state)

    # With a lock of its own, since the transformation is other people's code, and without one each
    # of two threads would make new state, and one would train what is forgotten.
    @cached_by_version(lock="_guard")
    def cache_key(self) -> CacheKey:
        state = tuple(variable.cache_parts for variable in self._follow().state)
        return CacheKey((self._serial, self._source.cache_key(), state))

    @cached_by_version(lock="_guard")
    def _follow(self) -> _Fitted:
        """Make the state fit the variables that the model has now."""
        old, params = self._fitted, dict(self._source.distinct_by_name())
        if old.treedef is None or params != old.params:
            refuse_in_trace("fitting an optimizer to an edited model")
            self._fitted = self._fit(old, params)
        fitted = self._fitted
        # One for all: `sb.jit` takes the locks of all of its variables at each call.
        lock = next((variable.lock for variable in fitted.params.values()), self._guard)
        for variable in fitted.state:
            variable.lock = lock
        return fitted

    def _fit(self, old: _Fitted, params: dict[str, Variable]) -> _Fitted:
        """Return a state for `params`, with what there is of it in the old one."""
        values = {name: variable.value for name, variable in params.items()}
        fresh = self.transformation.init(values)
        leaves, treedef = jax.tree_util.tree_flatten_with_path(fresh)
        old_names = {variable: name for name, variable in old.params.items()}
        kept = dict(zip(old.names, old.state, strict=True))
        names: list[str] = []
        state: list[Variable] = []
        for path, leaf in leaves:
            keys = [_key_text(key) for key in path]
            before = [old_names.get(params[key], key) if key in params else key for key in keys]
            name = f"(Optimizer).{'.'.join(keys)}"
            variable = kept.get(f"(Optimizer).{'.'.join(before)}")
            if variable is None or variable.shape != jnp.shape(leaf):
                variable = Variable(
                    leaf, kind="state", collection="optimizer", path=tuple(keys), name=name
                )
            variable.default_name = name
            names.append(name)
            state.append(variable)
        return _Fitted(params, tuple(state), tuple(names), treedef)

    def __getstate__(self) -> dict[str, Any]:
        state = {}
        for name, value in self.__dict__.items():
            if name not in ("_guard", "_serial", "_source") and not name.endswith("_by_version"):
                state[name] = value
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _guard=threading.RLock(), _serial=serial())
        self._source = self._trained()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        with locked(lambda: [self, self._model]):
            made.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return made

    def __repr__(self) -> str:
        return (
            f"Optimizer({len(self._fitted.params)} variables, {len(self._fitted.state)} of state)"
        )


def _key_text(key: Any) -> str:
    """Return a key of a path in a pytree as it stands in a name."""
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    raise TypeError(f"the state of an optimizer is nested by {type(key).__name__}")
