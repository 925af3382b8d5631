"""Random edits of a built model and of a plain Python list of the same entries; they must agree.

What the model computes is checked against NumPy on values that the test keeps for itself, so that
weights which move to another layer, or are made anew, show.
"""

import dataclasses
import operator
from functools import partial

import flax.linen as nn
import haiku as hk
import jax.numpy as jnp
import numpy as np
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import seqbridge as sb
from helpers import linear

X = jnp.linspace(-1.0, 1.0, 6).reshape(2, 3)
LONGEST = 8

POSITIONS = st.integers(-LONGEST - 2, LONGEST + 2)
SLICES = st.builds(
    slice,
    *[st.none() | st.integers(-LONGEST, LONGEST)] * 2,
    st.sampled_from([None, None, 1, 2, -1, -2, 0]),
)
ENTRIES = st.integers(0, 8)
FEW = st.lists(ENTRIES, max_size=3)


def shift(x):
    return x + 1


def halve(x):
    return x / 2


def refuse(key, x):
    raise ArithmeticError("a layer that can't be built")


REFUSED = dataclasses.replace(linear(3), init=refuse)


def entry_of(item):
    return item if isinstance(item, sb.Sequential) else item.entry


def leaves(model):
    for item in model:
        yield from leaves(item) if isinstance(item, sb.Sequential) else [item]


def result(function, *args):
    """Return what a call returns, or the error that it raises."""
    try:
        return function(*args)
    except Exception as error:
        return error


class Edits(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        weights = jnp.arange(1.0, 10.0).reshape(3, 3) / 10
        nested = sb.Sequential([linear(3), halve])
        self.pool = [
            shift,
            halve,
            partial(lambda w, x: x @ w, weights),
            linear(3),
            linear(3),
            nn.Dense(3),
            nn.Dense(3),
            partial(hk.Linear, 3),
            nested,
        ]
        self.plain, self.names = [], []
        # of each layer seen: its variables by name, with the array that each must hold
        self.values = {}

    @initialize(chosen=FEW, named=st.booleans())
    def start(self, chosen, named):
        self.plain = [self.pool[i] for i in chosen]
        self.names = [f"layer{i}" if named else None for i in range(len(chosen))]
        given = dict(zip(self.names, self.plain, strict=True)) if named else self.plain
        self.model = sb.Sequential(given).build(X.shape)
        self.note_layers()

    def note_layers(self):
        for layer in leaves(self.model):
            if layer not in self.values:
                self.values[layer] = {name: [v, v.value] for name, v in layer.vars().items()}

    def edit(self, change, model_change=None, names=None, staying=None):
        """Does `change` to the list and to the model.

        Args:
            change: A function of the list.
            model_change: The same for the model, if it isn't the same function.
            names: A function of the list of names; by default `change`.
            staying: The positions, before the edit, of the entries that must keep their layers. By
                default all.
        """
        before = list(self.model)
        staying = [self.plain[i] for i in (range(len(self.plain)) if staying is None else staying)]
        kept = {
            id(entry_of(item)): item for item in before if any(entry_of(item) is e for e in staying)
        }
        plain = list(self.plain)
        want, got = result(change, plain), result(model_change or change, self.model)
        if isinstance(want, Exception):
            assert type(got) is type(want), (got, want)
            assert [id(i) for i in self.model] == [id(i) for i in before]
            return
        if isinstance(got, Exception):
            raise got
        if isinstance(got, sb.Layer):
            got = got.entry
        assert got is want or got is self.model or want is plain
        (names or change)(self.names)
        self.plain = plain
        for item in self.model:
            assert kept.get(id(entry_of(item)), item) is item
        assert all(layer.built for layer in leaves(self.model))
        self.note_layers()

    def unnamed(self, n):
        return [None] * n

    def drop_repeated_names(self):
        for i, name in enumerate(self.names):
            if name in self.names[:i]:
                self.names[i] = None

    # Edits

    @precondition(lambda self: len(self.plain) < LONGEST)
    @rule(i=ENTRIES, add=st.booleans())
    def append(self, i, add):
        entry = self.pool[i]
        self.edit(
            lambda m: m.append(entry),
            lambda m: (m.add if add else m.append)(entry),
            lambda names: names.append(None),
        )

    @precondition(lambda self: len(self.plain) < LONGEST)
    @rule(at=POSITIONS, i=ENTRIES)
    def insert(self, at, i):
        self.edit(lambda m: m.insert(at, self.pool[i]), names=lambda names: names.insert(at, None))

    @precondition(lambda self: len(self.plain) < LONGEST)
    @rule(chosen=FEW, how=st.sampled_from(["extend", "iterator", "+="]))
    def extend(self, chosen, how):
        new = [self.pool[i] for i in chosen]
        change = {
            "extend": lambda m: m.extend(new),
            "iterator": lambda m: m.extend(iter(new)),
            "+=": lambda m: operator.iadd(m, new),
        }[how]
        self.edit(change, names=lambda names: names.extend(self.unnamed(len(new))))

    @rule(at=POSITIONS, i=ENTRIES)
    def replace(self, at, i):
        n = len(self.plain)
        staying = [k for k in range(n) if k != at % max(n, 1)] if -n <= at < n else None
        self.edit(
            lambda m: operator.setitem(m, at, self.pool[i]),
            names=lambda names: None,
            staying=staying,
        )

    @precondition(lambda self: len(self.plain) < LONGEST)
    @rule(where=SLICES, chosen=FEW)
    def replace_slice(self, where, chosen):
        new = [self.pool[i] for i in chosen]
        replaced = [] if where.step == 0 else range(len(self.plain))[where]
        staying = [k for k in range(len(self.plain)) if k not in replaced]
        self.edit(
            lambda m: operator.setitem(m, where, new),
            names=lambda names: operator.setitem(names, where, self.unnamed(len(new))),
            staying=staying,
        )

    @rule(at=POSITIONS)
    def delete(self, at):
        self.edit(lambda m: operator.delitem(m, at))

    @rule(where=SLICES)
    def delete_slice(self, where):
        self.edit(lambda m: operator.delitem(m, where))

    @rule(at=st.none() | POSITIONS)
    def pop(self, at):
        self.edit((lambda m: m.pop()) if at is None else (lambda m: m.pop(at)))

    @rule(i=ENTRIES)
    def remove(self, i):
        entry = self.pool[i]
        # A plain list compares by value, so that it would take out an equal module.
        at = next((k for k, e in enumerate(self.plain) if e is entry), None)
        if at is None:
            assert isinstance(result(self.model.remove, entry), ValueError)
        else:
            self.edit(lambda m: operator.delitem(m, at), lambda m: m.remove(entry))

    @rule()
    def reverse(self):
        self.edit(lambda m: m.reverse())

    @rule()
    def clear(self):
        self.edit(lambda m: m.clear())

    @precondition(lambda self: len(self.plain) <= LONGEST // 2)
    @rule(n=st.sampled_from([-1, 0, 1, 2, 1.5]))
    def multiply_in_place(self, n):
        self.edit(lambda m: operator.imul(m, n))
        self.drop_repeated_names()

    @precondition(lambda self: len(self.plain) <= LONGEST // 2)
    @rule()
    def extend_by_itself(self):
        self.edit(lambda m: m.extend(m))
        self.drop_repeated_names()

    @precondition(lambda self: len(self.plain) > 1)
    @rule(i=st.integers(0, LONGEST), j=st.integers(0, LONGEST))
    def swap(self, i, j):
        i, j = i % len(self.plain), j % len(self.plain)

        def change(m):
            m[i], m[j] = m[j], m[i]

        before = {id(layer) for layer in self.model}
        self.edit(change, names=lambda names: None)
        assert {id(layer) for layer in self.model} == before

    # Edits that must change nothing

    @rule(
        chosen=FEW,
        bad=st.sampled_from([3, None, "relu", REFUSED]),
        at=st.integers(0, 3),
        how=st.integers(0, 3),
    )
    def fail(self, chosen, bad, at, how):
        new = [self.pool[i] for i in chosen]
        new.insert(at, bad)
        before, names = list(self.model), self.model.names
        change = [
            lambda: self.model.extend(new),
            lambda: operator.iadd(self.model, new),
            lambda: operator.setitem(self.model, slice(0, at), new),
            lambda: self.model.append(bad),
        ][how]
        assert isinstance(result(change), ArithmeticError if bad is REFUSED else TypeError)
        assert [id(item) for item in self.model] == [id(item) for item in before]
        assert self.model.names == names

    # Other models of the same layers

    @rule(where=SLICES)
    def slice(self, where):
        want, got = (
            result(operator.getitem, self.plain, where),
            result(operator.getitem, self.model, where),
        )
        if isinstance(want, Exception):
            assert type(got) is type(want)
            return
        self.go_on_with(got, want, self.names[where])

    @precondition(lambda self: len(self.plain) < LONGEST)
    @rule(chosen=FEW, left=st.booleans())
    def add(self, chosen, left):
        new, names = [self.pool[i] for i in chosen], self.unnamed(len(chosen))
        if left:
            self.go_on_with(new + self.model, new + self.plain, names + self.names)
        else:
            self.go_on_with(self.model + new, self.plain + new, self.names + names)

    @precondition(lambda self: len(self.plain) <= LONGEST // 2)
    @rule(n=st.sampled_from([0, 1, 2]), left=st.booleans())
    def multiply(self, n, left):
        self.go_on_with(n * self.model if left else self.model * n, n * self.plain, n * self.names)

    def go_on_with(self, model, plain, names):
        assert type(model) is sb.Sequential
        assert model is not self.model
        old = {id(entry_of(item)): item for item in self.model}
        assert all(old.get(id(entry_of(item)), item) is item for item in model)
        self.model, self.plain, self.names = model.build(X.shape), plain, list(names)
        self.drop_repeated_names()
        self.note_layers()

    # Values

    @rule(i=st.integers(0, 20), scale=st.sampled_from([0.5, 0.75, -0.5]))
    def assign(self, i, scale):
        variables = list(self.model.vars().values())
        if variables:
            variable = variables[i % len(variables)]
            variable.assign(variable * scale)
            for held in self.values.values():
                for pair in held.values():
                    if pair[0] is variable:
                        pair[1] = variable.value

    # What always holds

    @invariant()
    def the_entries_are_those_of_the_list(self):
        assert len(self.model) == len(self.plain)
        assert bool(self.model) is bool(self.plain)
        assert all(
            entry_of(item) is entry for item, entry in zip(self.model, self.plain, strict=True)
        )
        assert all(
            entry_of(item) is entry
            for item, entry in zip(reversed(self.model), self.plain[::-1], strict=True)
        )
        assert all(
            entry_of(self.model[i]) is self.plain[i]
            for i in range(-len(self.plain), len(self.plain))
        )
        assert self.model.names == tuple(self.names)
        assert all(self.model[name] is self.model[i] for i, name in enumerate(self.names) if name)

    @invariant()
    def search_goes_by_identity(self):
        for entry in self.pool:
            where = [i for i, other in enumerate(self.plain) if other is entry]
            assert self.model.count(entry) == len(where)
            assert (entry in self.model) is bool(where)
            if where:
                assert self.model.index(entry) == self.model.index(self.model[where[0]]) == where[0]
                assert self.model.index(entry, where[-1]) == where[-1]
            else:
                assert isinstance(result(self.model.index, entry), ValueError)

    @invariant()
    def one_entry_is_one_layer(self):
        layers = {}
        for item in self.model:
            assert layers.setdefault(id(entry_of(item)), item) is item

    @invariant()
    def the_variables_are_the_same_boxes_with_the_same_values(self):
        names = []
        for layer in leaves(self.model):
            held = self.values[layer]
            assert list(layer.vars()) == list(held)
            for name, (variable, array) in held.items():
                assert layer.vars()[name] is variable
                assert variable.value is array
                names.append(variable)
        assert list(self.model.vars().values()) == names
        assert len(self.model.vars().tensors()) == len(set(names))

    @invariant()
    def the_model_computes_what_the_list_computes(self):
        want = np.asarray(X)
        for layer in leaves(self.model):
            arrays = {name: np.asarray(array) for name, (_, array) in self.values[layer].items()}
            want = fold(layer.entry, arrays, want)
        np.testing.assert_allclose(self.model(X), want, rtol=1e-4, atol=1e-4)


def fold(entry, arrays, x):
    """One step of the list's own computation, in NumPy."""
    if entry is shift or entry is halve:
        return entry(x)
    weight = next(a for a in arrays.values() if a.ndim == 2)
    bias = next((a for a in arrays.values() if a.ndim == 1), np.zeros(3, np.float32))
    return x @ weight + bias[None]


def test_random_edits_of_a_model_are_those_of_a_list():
    run_state_machine_as_test(
        Edits,
        settings=settings(
            max_examples=40,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            report_multiple_bugs=False,
            phases=(Phase.generate, Phase.shrink),  # to explain a failure takes minutes
        ),
    )
