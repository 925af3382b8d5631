#!/usr/bin/env bash
# e3nn-jax 0.21.0: `Irreps` is a tuple with an `__radd__` of its own, so `names += irreps` doesn't
# extend the list `names`, though list has an in-place addition: Python asks the number slots of both
# sides, and with them `Irreps.__radd__`, before the sequence slot of the list. The name is bound to a
# new `Irreps` if the list holds what one can be made of, and the list is as it was. Whoever walks
# modules with `waiting += parts` goes wrong there; `waiting.extend(parts)` doesn't.
#
# Seen: after `names += irreps` the name is an `Irreps` of three parts, and the list still has one.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q e3nn-jax==0.21.0 jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$work/venv/bin/python" - <<'PYTHON'
import e3nn_jax

irreps = e3nn_jax.Irreps("2x0e + 1x1o")
names = kept = [(3, "2e")]
names += irreps
print(type(names).__name__, names, kept)
assert type(names) is e3nn_jax.Irreps, type(names)
assert len(names) == 3, names
assert kept == [(3, "2e")], kept

kept.extend(irreps)
assert len(kept) == 3, kept
PYTHON
