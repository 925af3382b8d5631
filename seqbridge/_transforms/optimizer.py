"""`Optimizer`: a gradient transformation together with its state and the variables that it updates."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, Self

import jax
import jax.numpy as jnp
import numpy as np

from seqbridge._interface import check_names
from seqbridge._state import (
    CacheKey,
    Stateful,
    Variable,
    cast,
    commit,
    locked,
    refuse_in_trace,
    serial,
    version,
)
from seqbridge._variables import Filter, VarCollection, VariableHolder


class Transformation(Protocol):
    """What optax calls a `GradientTransformation`: two pure functions."""

    @property
    def init(self) -> Any:
        """From parameters to a state."""

    @property
    def update(self) -> Any:
        """From gradients, state and parameters to updates and a new state."""


class _Fitted(NamedTuple):
    """The state that fits the variables which the model has, as long as no model is edited."""

    edit: int = -1
    params: dict[str, Variable] = {}  # noqa: RUF012  (nobody changes it)
    state: tuple[Variable, ...] = ()
    names: tuple[str, ...] = ()
    treedef: Any = None
    token: CacheKey | None = None


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

    def __init__(
        self, model: Stateful, transformation: Transformation, *, wrt: Filter | None = None
    ):
        if not isinstance(model, Stateful):
            raise TypeError(
                f"an Optimizer takes a model, a layer or a collection, not {type(model).__name__}"
            )
        if not all(callable(getattr(transformation, part, None)) for part in ("init", "update")):
            raise TypeError(
                "an Optimizer takes a gradient transformation that was made, such as adam(1e-3), "
                "not "
                f"{transformation!r:.60}"
            )
        self._serial = 0
        self._guard = threading.RLock()
        self.transformation = transformation
        self._model, self._wrt = model, wrt
        self._source = self._trained()
        self._fitted = _Fitted()
        if (
            wrt is not None
            and getattr(model, "built", True)
            and not VarCollection(model.variables_by_name).subset(wrt)
        ):
            raise ValueError(
                f"there is nothing to update: wrt={wrt!r:.60} lets no variable through"
            )
        self._follow()

    @property
    def transformation(self) -> Transformation:
        """What turns gradients into updates. Another one is another program."""
        return self._transformation

    @transformation.setter
    def transformation(self, new: Transformation) -> None:
        self._transformation, self._serial = new, serial()
        version.bump()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("lr", "learning_rate", "weight_decay", "momentum", "param_groups", "tx"):
            raise AttributeError(
                f"an Optimizer has no {name!r}: set optimizer.transformation, or give the "
                f"transformation a schedule"
            )
        object.__setattr__(self, name, value)

    def _trained(self) -> VarCollection:
        return (
            VarCollection(self._model.variables_by_name)
            .subset(lambda v: v.trainable)
            .subset(self._wrt)
        )

    def update(self, gradients: Mapping[str, Any], /, *more: Any, **extra: Any) -> None:
        """Takes one step: changes the parameters and the optimizer's state.

        Args:
            gradients: From variable name to array, as `value_and_grad` returns it.
            *more: Nothing: an optimizer knows its model.
            **extra: What the transformation's `update` takes beside; the loss, for instance.

        Raises:
            KeyError: Gradients are missing, or are of no variable of this optimizer.
            ValueError: A gradient has another shape than its variable.
        """
        if more or isinstance(gradients, Stateful) or not isinstance(gradients, Mapping):
            got = ", ".join(type(given).__name__ for given in (gradients, *more))
            raise TypeError(
                f"an Optimizer knows its variables: write optimizer.update(gradients), arrays by "
                f"name; got {got}"
            )
        with locked(lambda: [self]):
            fitted = self._follow()
            check_names(
                "the gradients don't belong to the optimizer's variables", gradients, fitted.params
            )
            params = {name: box.value for name, box in fitted.params.items()}
            for name, param in params.items():
                if (shape := np.shape(gradients[name])) != param.shape:
                    raise ValueError(
                        f"{name} has shape {param.shape}: its gradient can't have shape {shape}"
                    )
            state = jax.tree.unflatten(fitted.treedef, [box.value for box in fitted.state])
            steps, state = self.transformation.update(
                {n: gradients[n] for n in params}, state, params, **extra
            )
            new = {
                box: params[n] + jnp.asarray(steps[n], params[n].dtype)
                for n, box in fitted.params.items()
            }
            leaves = fitted.treedef.flatten_up_to(state)
            new |= {
                v: cast(v.name, leaf, v.value) for v, leaf in zip(fitted.state, leaves, strict=True)
            }
            commit(new)

    def vars(self) -> VarCollection:
        """The variables that hold the optimizer's state, live."""
        return VarCollection(self._own)

    def _own(self) -> dict[str, Variable]:
        fitted = self._follow()
        return dict(zip(fitted.names, fitted.state, strict=True))

    def variables_by_name(self) -> Mapping[str, Variable]:
        return self._own()

    def own_variables(self) -> tuple[Variable, ...]:
        fitted = self._follow()
        return (*fitted.params.values(), *fitted.state)

    def cache_key(self) -> CacheKey:
        token = self._follow().token
        assert token is not None
        return token

    def _follow(self) -> _Fitted:
        """Makes the state fit the variables that the model has now."""
        if self._fitted.edit != version.number:
            with (
                self._guard
            ):  # or each of two threads would make new state, and one would train what is forgotten
                self._fitted = self._fit(self._fitted, version.number)
        return self._fitted

    def _fit(self, old: _Fitted, edit: int) -> _Fitted:
        params, new = dict(self._source.distinct_by_name()), old
        if old.treedef is None or params != old.params:
            refuse_in_trace("fitting an optimizer to an edited model")
            fresh = self.transformation.init({name: box.value for name, box in params.items()})
            leaves, treedef = jax.tree_util.tree_flatten_with_path(fresh)
            old_names = {box: name for name, box in old.params.items()}
            kept = dict(zip(old.names, old.state, strict=True))
            names, state = [], []
            for path, leaf in leaves:
                keys = [
                    str(next(getattr(k, a) for a in ("key", "name", "idx") if hasattr(k, a)))
                    for k in path
                ]
                before = [old_names.get(params[k], k) if k in params else k for k in keys]
                name, was = (f"(Optimizer).{'.'.join(parts)}" for parts in (keys, before))
                box = kept.get(was)
                if box is None or box.shape != jnp.shape(leaf):
                    box = Variable(
                        leaf, kind="state", collection="optimizer", path=tuple(keys), name=name
                    )
                box._label = name
                names.append(name)
                state.append(box)
            new = _Fitted(edit, params, tuple(state), tuple(names), treedef)
        lock = next((box.lock for box in new.params.values()), self._guard)
        for box in new.state:
            box.lock = (
                lock  # one for all: `sb.jit` takes the locks of all of its variables at each call
            )
        token = CacheKey(
            (self._serial, self._source.cache_key(), tuple(v._serial for v in new.state))
        )
        return new._replace(edit=edit, token=token)

    def __getstate__(self) -> dict[str, Any]:
        state = {
            k: v for k, v in self.__dict__.items() if k not in ("_guard", "_serial", "_source")
        }
        return state | {"_fitted": self._fitted._replace(edit=-1, token=None)}

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
