"""`Optimizer`: a gradient transformation together with its state and the variables that it updates."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from seqbridge._collection import Filter, VarCollection
from seqbridge._names import check_names
from seqbridge._saving import Saved
from seqbridge._stateful import Locks, Stateful, Token, edits, serial
from seqbridge._trace import commit, refuse_in_trace
from seqbridge._variable import Variable, cast


class Transformation(Protocol):
    """What optax calls a `GradientTransformation`: two pure functions."""

    @property
    def init(self) -> Any:
        """From parameters to a state."""

    @property
    def update(self) -> Any:
        """From gradients, state and parameters to updates and a new state."""


class Optimizer(Saved):
    """Any optax transformation, with its state kept in variables.

    The state follows the model: after an edit, the layers that stayed keep their moments and new layers get fresh
    ones.

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

    def __init__(self, model: Stateful, transformation: Transformation, *, wrt: Filter | None = None):
        if not isinstance(model, Stateful):
            raise TypeError(f"an Optimizer takes a model, a layer or a collection, not {type(model).__name__}")
        if not all(callable(getattr(transformation, part, None)) for part in ("init", "update")):
            raise TypeError(
                "an Optimizer takes a gradient transformation that was made, such as adam(1e-3), not "
                f"{transformation!r:.60}"
            )
        self._serial = 0
        self.transformation = transformation
        self._model, self._wrt = model, wrt
        self._source = self._trained()
        self._params: dict[str, Variable] = {}
        self._state: tuple[Variable, ...] = ()
        self._names: tuple[str, ...] = ()
        self._treedef: Any = None
        self._edit = -1
        self._made: Token | None = None
        self._follow()

    @property
    def transformation(self) -> Transformation:
        """What turns gradients into updates. Another one is another program."""
        return self._transformation

    @transformation.setter
    def transformation(self, new: Transformation) -> None:
        self._transformation, self._serial = new, serial()
        edits.count += 1

    def _trained(self) -> VarCollection:
        return VarCollection(self._model._by_name).subset(lambda v: v.trainable).subset(self._wrt)

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
                f"an Optimizer knows its variables: write optimizer.update(gradients), arrays by name; got {got}"
            )
        self._follow()
        check_names("the gradients don't belong to the optimizer's variables", gradients, self._params)
        with Locks((*self._params.values(), *self._state)):
            params = {name: box.value for name, box in self._params.items()}
            for name, param in params.items():
                if (shape := np.shape(gradients[name])) != param.shape:
                    raise ValueError(f"{name} has shape {param.shape}: its gradient can't have shape {shape}")
            state = jax.tree.unflatten(self._treedef, [box.value for box in self._state])
            steps, state = self.transformation.update({n: gradients[n] for n in params}, state, params, **extra)
            new = {box: params[n] + jnp.asarray(steps[n], params[n].dtype) for n, box in self._params.items()}
            leaves = self._treedef.flatten_up_to(state)
            new |= {v: cast(v.name, leaf, v.value) for v, leaf in zip(self._state, leaves, strict=True)}
            commit(new)

    def vars(self) -> VarCollection:
        """The variables that hold the optimizer's state, live."""
        return VarCollection(self._own)

    def _own(self) -> dict[str, Variable]:
        self._follow()
        return dict(zip(self._names, self._state, strict=True))

    def _by_name(self) -> Mapping[str, Variable]:
        return self._own()

    def _boxes(self) -> tuple[Variable, ...]:
        self._follow()
        return (*self._params.values(), *self._state)

    def _token(self) -> Token:
        self._follow()
        if self._made is None:
            self._made = Token((self._serial, self._source._token(), tuple(v._serial for v in self._state)))
        return self._made

    def _follow(self) -> None:
        """Makes the state fit the variables that the model has now."""
        if self._edit == edits.count:
            return
        params = dict(self._source._first())
        if self._treedef is None or params != self._params:
            refuse_in_trace("fitting an optimizer to an edited model")
            fresh = self.transformation.init({name: box.value for name, box in params.items()})
            leaves, self._treedef = jax.tree_util.tree_flatten_with_path(fresh)
            old_names = {box: name for name, box in self._params.items()}
            kept = dict(zip(self._names, self._state, strict=True))
            names, state = [], []
            for path, leaf in leaves:
                keys = [str(next(getattr(k, a) for a in ("key", "name", "idx") if hasattr(k, a))) for k in path]
                before = [old_names.get(params[k], k) if k in params else k for k in keys]
                name, old = (f"(Optimizer).{'.'.join(parts)}" for parts in (keys, before))
                box = kept.get(old)
                if box is None or box.shape != jnp.shape(leaf):
                    box = Variable(leaf, kind="state", collection="optimizer", path=tuple(keys), name=name)
                box._label = name
                names.append(name)
                state.append(box)
            self._names, self._state, self._params = tuple(names), tuple(state), params
        lock = next((box._lock for box in params.values()), threading.RLock())
        for box in self._state:
            box._lock = lock  # one for all: `sb.jit` takes the locks of all of its variables at each call
        self._edit, self._made = edits.count, None

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_edit", "_made", "_serial", "_source")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _edit=-1, _made=None, _serial=serial())
        self._source = self._trained()

    def __repr__(self) -> str:
        return f"Optimizer({len(self._params)} variables, {len(self._state)} of state)"
