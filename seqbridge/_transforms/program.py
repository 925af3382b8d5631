"""One compiled program for a function of stateful arguments.

A call reads the arrays of a flat list of buffers, makes one call of one function that `jax.jit`
compiled, and writes back what changed. What changes is found while the function is traced.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
import warnings
import weakref
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, ParamSpec, TypeAlias, TypeVar

import jax

from seqbridge._entries import FunctionLike
from seqbridge._interface import Inputs, Keywords
from seqbridge._sharding import BatchSharding
from seqbridge._state import (
    Buffers,
    Frame,
    Locks,
    Stateful,
    Variable,
    call_and_keep,
    commit,
    in_frame,
    lost,
    pack,
    read,
    store,
    tracing,
    version,
    writer,
)
from seqbridge._transforms.partition import (
    combine,
    holders_of,
    is_array,
    is_hashable,
    partition,
    places_of,
    variables_of,
    weakly,
)

P = ParamSpec("P")
R = TypeVar("R")

_MOST_PROGRAMS = 64  # kept of one function; the oldest goes first


@dataclasses.dataclass(slots=True)
class Bound:
    """The variables of a program and the buffers that it passes, as long as no model is edited.

    Attributes:
        edit: The version that this holds for.
        variables: The variables.
        buffers: What the program passes and returns.
        lock: The locks of the variables.
        holders: The ids of the objects that brought the variables, all of which live.
        references: Weak references to them, which say when one of them doesn't.
    """

    edit: int
    variables: tuple[Variable, ...]
    buffers: Buffers
    lock: Locks | threading.RLock
    holders: list[int]
    references: list[weakref.ref[Stateful]]


class _Current(threading.local):
    """The call that a thread traces a program for, as programs hold no models and no arrays."""

    call: tuple[Sequence[Stateful], Bound] | None = None
    batch: int = 0


class Program:
    """A compiled function of `(donated arrays of buffers, those of the others, arrays)`.

    It returns the outputs of the function, and the new arrays of buffers by their numbers.

    Args:
        function: The function of stateful arguments.
        signature: All of its arguments but arrays and holders, as `partition` has it.
        n_closed: The number of the holders that are no arguments.
        current: The call that it is traced for.
        sharding: The mesh that it runs on, if it does.
        compiler_options: Those of XLA, as `jax.jit` takes them.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        signature: Hashable,
        n_closed: int,
        current: _Current,
        sharding: BatchSharding | None,
        compiler_options: dict[str, Any] | None,
    ):
        self._function = function
        self._sharding = sharding if sharding is not None and sharding.many else None
        self._signature = signature
        self._n_closed = n_closed
        self._current = current
        self.donated: tuple[int, ...] | None = None  # not known yet
        self.kept: tuple[int, ...] = ()
        self._jit = functools.partial(jax.jit, compiler_options=compiler_options)
        self.compiled = self._jit(weakly(self._traced, self._function))
        self.bound: Bound | None = None
        self.packed = False  # whether it was made sure that its variables are, if they are to be
        # The call that it is bound for; see `Jitted._remember`.
        self.like: tuple[Bound, tuple[int | None, ...]] | None = None

    def bind(self, holders: list[Stateful], edit: int) -> Bound:
        """Find the variables, and keep them for as long as their holders live."""
        variables = variables_of(holders)
        locks = Locks(variables)
        forget = functools.partial(_forget, weakref.ref(self))
        self.bound = Bound(
            edit=edit,
            variables=variables,
            buffers=Buffers(variables),
            lock=locks[0] if len(locks) == 1 else locks,
            holders=[id(holder) for holder in holders],
            references=[weakref.ref(holder, forget) for holder in holders],
        )
        return self.bound

    def forget(self) -> None:
        """Let go of the variables."""
        self.bound = None
        self.like = None

    @functools.cached_property
    def nested(self) -> Callable[[list[Any], list[Any]], tuple[Any, dict[int, Any]]]:
        """The same inside another transform, from the values that it gives to the variables."""
        return jax.jit(weakly(self._nested, self._function))

    def _nested(self, values: list[Any], arrays: list[Any]) -> tuple[Any, dict[int, Any]]:
        assert self._current.call is not None
        variables = self._current.call[1].variables
        out, changes = self._run(dict(zip(variables, values, strict=True)), arrays)
        by_number = {}
        for i, variable in enumerate(variables):
            if variable in changes:
                by_number[i] = changes[variable]
        return out, by_number

    def _run(
        self, start: dict[Variable, Any], arrays: list[Any]
    ) -> tuple[Any, dict[Variable, Any]]:
        """Return the outputs of the function for traced values, and the variables that change."""
        assert self._current.call is not None
        sharding, batch = self._sharding, self._current.batch
        if sharding is not None:
            start = {variable: sharding.used(variable, value) for variable, value in start.items()}
            arrays = sharding.split(arrays, batch)
        holders, _ = self._current.call
        with Frame(start, transform="sb.jit", compiled=True) as frame:
            args, keywords = combine(self._signature, arrays, holders[self._n_closed :])
            out = self._function(*args, **keywords)
            for leaf in jax.tree.leaves(out):
                if isinstance(leaf, Stateful):
                    raise TypeError(
                        f"the function returns {type(leaf).__name__}, whose variables are changed "
                        "in place: return arrays"
                    )
        if sharding is not None:
            out = sharding.split(out, batch, outputs=True)
        return out, frame.changes()

    def _traced(
        self, donated: list[Any], kept: list[Any], arrays: list[Any]
    ) -> tuple[Any, dict[int, Any]]:
        assert self._current.call is not None
        buffers = self._current.call[1].buffers
        given = dict(zip(self.donated or (), donated, strict=True))
        rest = iter(kept)
        passed = [given[i] if i in given else next(rest) for i in range(len(buffers))]
        out, changes = self._run(buffers.unpack(passed), arrays)
        # What was donated comes back in any case: its old array is gone.
        changed = given | buffers.repack(passed, changes)
        if self._sharding is not None:
            for i, value in changed.items():
                changed[i] = self._sharding.stored(buffers[i], value)
        return out, changed

    def donate(self, buffers: Buffers, arrays: list[Any]) -> None:
        """From now on donate the arrays of the buffers that change.

        Those that an object of the user's may hold are copied before.
        """
        if self.donated is not None:
            return
        now = [buffer.array for buffer in buffers]
        _, changed = jax.eval_shape(self._traced, [], now, arrays)
        self.kept = tuple(i for i in range(len(buffers)) if i not in changed)
        for i in changed:
            buffers[i].unalias()
        self.compiled = self._jit(weakly(self._traced, self._function), donate_argnums=0)
        self.donated = tuple(changed)  # last: from now on all of this holds


def _forget(program: weakref.ref[Program], _: Any) -> None:
    found = program()
    if found is not None:
        found.forget()


# The program of a call, the variables that it is bound to, and the arrays that it is given.
Prepared: TypeAlias = tuple[Program, Bound, list[Any]]


class Jitted(FunctionLike[P, R]):
    """A compiled function, as `jit` returns it: called like the function that it was made from."""

    _sharding: BatchSharding | None = None
    __wrapped__: Callable[P, R]

    def __init__(
        self,
        function: Callable[P, R],
        vars: Any,
        static_argnames: Iterable[str],
        donate: bool,
        pack: bool,
        compiler_options: dict[str, Any] | None = None,
    ):
        functools.update_wrapper(self, function, updated=())
        self.wrapped_function: Callable[P, R] = function
        self.closed_holders: list[Stateful] = holders_of(function, vars)
        self._static = places_of(function, static_argnames)
        self._donate = donate
        self._pack = pack
        self._compiler_options = compiler_options
        self._programs: dict[Hashable, Program] = {}
        self._current = _Current()
        self._latest: Program | None = None
        self._warned = False

    def __call__(self, /, *args: P.args, **keywords: P.kwargs) -> R:
        variables: Sequence[Variable] = ()
        try:
            while True:
                program, bound, arrays = self._prepare(args, keywords)
                variables = bound.variables
                if in_frame():
                    return self._inside(program, bound, arrays)
                with bound.lock:
                    if bound.edit != version.number:
                        # Another thread was faster, and the variables may lie elsewhere now.
                        continue
                    if self._donate:
                        return self._donating(program, bound, arrays)
                    passed = [buffer.array for buffer in bound.buffers]
                    out, changed = program.compiled([], passed, arrays)
                    if changed:
                        if tracing():
                            return self._inside(program, bound, arrays)
                        store(bound.buffers, changed)
                return out
        except BaseException as error:  # Ctrl-C, too
            gone = lost(variables)
            if gone:
                error.add_note(
                    f"the arrays of {gone} were donated and are gone: assign them, or load the "
                    "model"
                )
            raise
        finally:
            self._current.call = None

    @writer
    def _donating(self, program: Program, bound: Bound, arrays: list[Any]) -> Any:
        """Call a program that is given the arrays of what changes."""
        buffers = bound.buffers
        program.donate(buffers, arrays)
        given = (*buffers.arguments(program.donated, program.kept, arrays), arrays)
        if tracing():
            out, changed = program.compiled(*given)
            return self._inside(program, bound, arrays) if changed else out

        def keep(result: tuple[Any, dict[int, Any]]) -> None:
            store(buffers, result[1])

        out, _ = call_and_keep(program.compiled, given, keep)
        return out

    def _inside(self, program: Program, bound: Bound, arrays: list[Any]) -> Any:
        """Call a program inside another transform, whose frame takes what changes."""
        out, changed = program.nested([read(variable) for variable in bound.variables], arrays)
        commit({bound.variables[i]: new for i, new in changed.items()})
        return out

    def lower(self, /, *args: P.args, **keywords: P.kwargs) -> jax.stages.Lowered:
        """Return the program for these arguments.

        It is JAX' `Lowered`, with `.as_text()`, `.compile()` and `.cost_analysis()`.
        """
        while True:
            program, bound, arrays = self._prepare(args, keywords)
            with bound.lock:
                if bound.edit == version.number:
                    if self._donate:
                        program.donate(bound.buffers, arrays)
                    passed = bound.buffers.arguments(program.donated, program.kept, arrays)
                    return program.compiled.lower(*passed, arrays)

    def _prepare(self, args: Inputs, keywords: Keywords) -> Prepared:
        """Find the program of a call, or make it."""
        if not keywords:
            found = self._again(args)
            if found is not None:
                return found
        while True:
            edit = version.number
            signature, arrays, holders = partition(args, keywords, self._static)
            key: Hashable = signature
            if self.closed_holders:
                holders = self.closed_holders + holders
                key = (signature, *[holder.cache_key() for holder in self.closed_holders])
            try:
                program = self._programs.get(key)
            except TypeError as error:
                self._explain_unhashable(args, keywords, error)
                raise
            if program is None:
                program = self._add_program(key, signature, holders)
            if self._pack and not program.packed and not tracing():
                pack(holders)
                if version.number != edit:
                    continue  # the variables moved, so there is another program for them
                program.packed = True
            bound = program.bound
            if bound is None or bound.edit != edit:
                bound = program.bind(holders, edit)
            self._current.call = holders, bound
            self._remember(args, keywords, program, bound, holders)
            return program, bound, arrays

    def _explain_unhashable(self, args: Inputs, keywords: Keywords, error: TypeError) -> None:
        """Raise with the name of the argument that `static_argnames` made static, if that is it."""
        for place, value in [*enumerate(args), *keywords.items()]:
            if place in self._static and not is_hashable(value):
                raise TypeError(
                    f"argument {place!r} is static, and a static argument must be hashable: "
                    f"{error}. Give a tuple, say"
                ) from error

    def _add_program(self, key: Hashable, signature: Hashable, holders: list[Stateful]) -> Program:
        function, n_closed = self.wrapped_function, len(self.closed_holders)
        program = Program(
            function, signature, n_closed, self._current, self._sharding, self._compiler_options
        )
        # The holders may be models that were edited: what they have no more may go.
        ids = {id(holder) for holder in holders}
        for other in list(self._programs.values()):
            if other.bound is not None and not ids.isdisjoint(other.bound.holders):
                other.forget()
        self._programs[key] = program
        if len(self._programs) > _MOST_PROGRAMS:
            self._programs.pop(next(iter(self._programs)), None)
            self._warn()
        return program

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"{self!r} was compiled {_MOST_PROGRAMS + 1} times. Each value of what is static "
                "(a bool, a string, a function, what static_argnames names) is another program, "
                "and so is each edit of a model: give as an array what changes often, and the "
                "same function object each time",
                stacklevel=5,
            )

    def _again(self, args: Inputs) -> Prepared | None:
        """Return what the last call prepared, if this one is like it, as nearly every call is."""
        program = self._latest
        if program is None:
            return None
        like = program.like
        if like is None:
            return None
        bound, kinds = like
        if program.bound is not bound or bound.edit != version.number or len(kinds) != len(args):
            return None
        arrays: list[Any] = []
        holders = list(self.closed_holders)
        for value, known in zip(args, kinds, strict=True):
            if id(value) == known:
                holders.append(value)
            elif known is None and is_array(value):
                arrays.append(value)
            else:
                return None
        self._current.call = holders, bound
        return program, bound, arrays

    def _remember(
        self,
        args: Inputs,
        keywords: Keywords,
        program: Program,
        bound: Bound,
        holders: list[Stateful],
    ) -> None:
        """Note a call for `_again`, if it can be known by the ids of its holders.

        An id is that of the same object for as long as the program is bound, since all holders live
        then.
        """
        self._latest = program
        program.like = None
        if keywords or self._static or (self._pack and not program.packed):
            return
        if bound.holders != [id(holder) for holder in holders]:
            return
        if not all(holder.steady_key for holder in holders):
            return
        kinds: list[int | None] = []
        for arg in args:
            if isinstance(arg, Stateful):
                kinds.append(id(arg))
            elif is_array(arg):
                kinds.append(None)
            else:
                return
        program.like = bound, tuple(kinds)
