"""Layers of packages that have never heard of seqbridge, as entries of one list.

e3nn-jax has its layers for Flax, for Haiku and for Equinox, and they hand `IrrepsArray`s to each
other; e3x is made of linen modules; jraph's networks take and return `GraphsTuple`s. Each model
here is trained, and then held against the packages' own calls with its weights. The last one mixes
all three packages and stays as blind to rotations as they are.

    pip install "seqbridge[borrow]" && python examples/borrow_layers.py
"""

from functools import partial
from typing import Any

import e3nn_jax
import e3x
import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import jraph
import numpy as np
import optax

import seqbridge as sb

e3nn: Any = e3nn_jax  # these two take more than their annotations say
jr: Any = jraph
STEPS, MAX_LOSS_LEFT = 150, 0.1


def native(entry: Any, weights: Any, x: Any) -> Any:
    """What the entry's own library computes."""
    if isinstance(weights, eqx.Module):
        return jax.vmap(weights)(x)  # pyright: ignore (an Equinox layer holds its weights and takes one example)
    if isinstance(entry, nn.Module):
        return entry.apply(weights, x)
    if isinstance(entry, partial):
        entry = hk.transform(lambda x, make=entry: make()(x))
    return entry.apply(weights[0], None, x) if isinstance(entry, hk.Transformed) else entry(x)


predict = sb.jit(lambda model, inputs: model(inputs))


@sb.jit
def train_step(
    model: sb.Sequential, optimizer: sb.Optimizer, inputs: Any, targets: jax.Array
) -> Any:
    loss, grads = sb.value_and_grad(lambda model: jnp.mean((model(inputs) - targets) ** 2))(model)
    optimizer.update(grads)
    return loss, grads


def train(entries: list[Any], inputs: Any, targets: jax.Array) -> sb.Sequential:
    """Makes a model of the entries, trains it, and holds it against the entries without it."""
    model = sb.Sequential(entries).build(inputs)
    optimizer = sb.Optimizer(model, optax.adam(1e-2))
    losses, grads = zip(
        *(train_step(model, optimizer, inputs, targets) for _ in range(STEPS)), strict=True
    )
    learning = {name.partition(".")[0] for name, grad in grads[0].items() if jnp.any(grad)}

    def by_hand(x: Any) -> jax.Array:
        for entry, layer in zip(entries, model, strict=True):
            x = native(entry, layer.native, x)
        return x

    error = float(jnp.abs(predict(model, inputs) - jax.jit(by_hand)(inputs)).max())
    print(
        f"{model}\nloss {losses[0]:.3f} -> {losses[-1]:.5f}, off the packages' own calls by "
        f"{error:.0e}\n"
    )
    assert losses[-1] < MAX_LOSS_LEFT * losses[0]
    assert learning == {name.partition(".")[0] for name in grads[0]}  # every layer that has weights
    assert error < 1e-4
    return model


def network(graph: Any) -> Any:
    """A layer of jraph is a function of functions.

    Where these have weights, a transform (or a module) owns them.
    """
    edges, nodes = hk.nets.MLP([64, 64]), hk.Linear(1)
    return jr.GraphNetwork(jr.concatenated_args(edges), jr.concatenated_args(nodes))(graph)


def equivariant_network(graph: Any) -> Any:
    """A Haiku layer of e3nn in a network of jraph, whose nodes and edges are `IrrepsArray`s."""
    linear = e3nn.haiku.Linear("8x1o")

    def message(_: None, sender: Any, receiver: Any, __: None) -> Any:
        return linear(e3nn.tensor_product(sender.filter("0e"), (receiver - sender).filter("1o")))

    return jr.GraphNetwork(message, lambda nodes, sent, received, _: received)(graph)


# Without weights, a layer of jraph is a function and so an entry. This one averages the nodes of
# each graph.
pool = jr.GraphNetwork(
    None, None, lambda nodes, edges, _: nodes, aggregate_nodes_for_globals_fn=jr.segment_mean
)


def to_e3x(vectors: jax.Array) -> jax.Array:
    """Bring vectors of shape (batch, features, 3) into the layout of e3x.

    That is (batch, parity, a scalar and the 3 components of a vector, features).
    """
    return jnp.pad(vectors.swapaxes(1, 2), ((0, 0), (1, 0), (0, 0)))[:, None]


def charged_points(n: int, size: int) -> tuple[Any, jax.Array]:
    """Neutral clouds of charged points, as complete graphs, and the squares of their dipoles."""
    charges, points = jnp.split(jax.random.normal(jax.random.key(1), (n, size, 4)), [1], axis=2)
    charges -= charges.mean(axis=1, keepdims=True)
    senders, receivers = jnp.nonzero(~jnp.eye(size, dtype=bool))
    counts = jnp.array([size]), jnp.array([len(senders)])
    nodes = (
        e3nn.IrrepsArray("0e + 1o", cloud) for cloud in jnp.concatenate([charges, points], axis=2)
    )
    graphs = jr.batch(
        [jr.GraphsTuple(cloud, None, receivers, senders, None, *counts) for cloud in nodes]
    )
    return graphs, jnp.sum(jnp.sum(charges * points, axis=1) ** 2, axis=1)


def main() -> None:
    pairs = jax.random.normal(jax.random.key(0), (256, 2, 3))
    a, b = pairs[:, 0], pairs[:, 1]
    products = jnp.concatenate([jnp.sum(a * b, axis=1, keepdims=True), jnp.cross(a, b)], axis=1)
    turn = e3nn.rand_matrix(jax.random.key(2), ())

    middle, end = e3nn.Irreps("8x0e + 8x1e"), e3nn.Irreps("0e + 1e")
    from_three = [
        e3nn.flax.Linear("16x1o"),
        e3nn.tensor_square,
        partial(e3nn.haiku.Linear, middle),
        partial(e3nn.equinox.Linear, irreps_in=middle, irreps_out=end),
    ]
    x = e3nn.IrrepsArray("2x1o", pairs.reshape(-1, 6))
    model = train([*from_three, lambda y: y.array], x, products)
    turned = predict(model, x.transform_by_matrix(turn))
    np.testing.assert_allclose(
        turned, predict(model[:-1], x).transform_by_matrix(turn).array, atol=1e-4
    )

    train(
        [e3x.nn.TensorDense(8, max_degree=1), e3x.nn.Dense(1), lambda y: y[:, 0, :, 0]],
        to_e3x(pairs),
        products,
    )

    graphs, squares = charged_points(64, 5)
    train([hk.transform(network), pool, lambda graph: graph.globals[:, 0]], graphs, squares)

    mixed = [
        hk.transform(equivariant_network),
        pool,
        lambda graph: to_e3x(graph.globals.mul_to_axis().array),
        e3x.nn.TensorDense(1, max_degree=0),
        lambda y: y[:, 0, 0, 0],
    ]
    model = train(mixed, graphs, squares)
    turned = predict(model, graphs._replace(nodes=graphs.nodes.transform_by_matrix(turn)))
    np.testing.assert_allclose(turned, predict(model, graphs), rtol=1e-3, atol=1e-3)


if __name__ == "__main__":
    # optax.adam and these packages mix ints with floats, which a JAX that is set to strict
    # promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
        main()
