"""Summaries, trees, pictures, differences, and the outputs of each layer."""

from __future__ import annotations

import copy
import functools
import io
import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import treescope
from flax import nnx
from jax.core import Tracer

import seqbridge as sb

X = jnp.ones((2, 4))
EYE = np.eye(4, dtype=np.float32)


def mixed() -> sb.Sequential:
    shared = nn.Dense(4)
    return sb.Sequential({
        "first": shared,
        "act": jax.nn.relu,
        "body": sb.Sequential([functools.partial(hk.Linear, 4), nn.BatchNorm()]),
        "again": shared,
        "frozen": sb.Layer(functools.partial(eqx.nn.Linear, 4, 3), trainable=False),
        "deep": sb.Repeat(nn.Dense(3), 5),
        "norm": nnx.LayerNorm(3, rngs=nnx.Rngs(0)),
    })  # fmt: skip


# Summaries


def test_a_summary_says_the_same_before_and_after_building() -> None:
    model = mixed()
    before = model.summary((None, 4))
    assert not model.built
    assert str(before) == str(model.build((None, 4)).summary()) == str(model.summary((None, 4)))
    assert [row.inputs for row in before.rows][:2] == ["float32[None,4]"] * 2
    assert before.rows[-1].outputs == "float32[None,3]"


def test_a_summary_runs_no_layer() -> None:
    seen = []

    def look(x: Any, factor: float = 1.0) -> Any:
        seen.append(isinstance(x, Tracer))
        return x * factor

    sb.Sequential([look]).summary((2, 3), factor=2.0)
    assert all(seen)


def test_inputs_may_be_integers() -> None:
    ids = jax.ShapeDtypeStruct((2, 5), jnp.int32)
    model = sb.Sequential([nn.Embed(100, 8)])
    assert model.summary(ids).rows[0].inputs == "int32[2,5]"
    assert model.build(ids).summary().rows[0].outputs == "float32[2,5,8]"
    assert model(jnp.ones((3, 5), jnp.int32)).shape == (3, 5, 8)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        sb.Sequential([nn.Embed(100, 8)]).build((None, 5))
    assert "jax.ShapeDtypeStruct((1, 8), jnp.int32)" in caught.value.__notes__[-1]


def test_sizes_of_images_may_be_open_too() -> None:
    model = sb.Sequential(
        [nn.Conv(3, (5, 5), padding="VALID"), lambda x: x.mean((1, 2)), nn.Dense(2)]
    )
    summary = model.summary((None, None, None, 1))
    assert [row.outputs for row in summary.rows] == [
        "float32[None,None,None,3]",
        "float32[None,3]",
        "float32[None,2]",
    ]
    assert summary.flops is None  # they depend on the size
    assert "FLOPs" not in str(summary)


def test_a_layer_that_repeats_others_shows_them() -> None:
    block = sb.Sequential({"wide": nn.Dense(4), "norm": nn.BatchNorm()})
    model = sb.Sequential(
        [sb.Repeat(sb.Sequential([sb.Repeat(block, 3), nn.relu]), 2), nn.Dense(1)]
    )
    summary = model.summary((None, 4))
    assert [(row.place, row.depth, row.copies) for row in summary.rows] == [
        ("[0]", 0, 0), ("[0]", 1, 2), ("[0] wide", 2, 6),
        ("[1] norm", 2, 6), ("[1]", 1, 2), ("[1]", 0, 0),
    ]  # fmt: skip
    assert [row.params for row in summary.rows] == [6 * 28, 3 * 28, 20, 8, 0, 5]
    assert {row.inputs for row in summary.rows} == {"float32[None,4]"}
    assert summary.flops == summary.rows[0].flops + summary.rows[-1].flops  # type: ignore[operator]
    assert "6 x [0] wide" in str(summary)
    assert str(summary) == str(model.build((None, 4)).summary())


def test_rows_have_the_names_of_their_variables() -> None:
    model = mixed().build((None, 4))
    names = [row.name for row in model.summary().rows if row.ecosystem and not row.copies]
    assert names == list(model.trace(X, training=False))


def test_each_variable_is_counted_once() -> None:
    model = mixed().build((2, 4))
    summary = model.summary()
    params = model.vars().subset("params").tensors().values()
    assert summary.params == sum(a.size for a in params)
    assert summary.state == sum(a.size for a in model.vars().subset("state").tensors().values())
    assert summary.size == 4 * (summary.params + summary.state)
    assert summary.params - summary.trained == 4 * 3 + 3
    rows = {row.place: row for row in summary.rows}
    assert rows["[3] again"].shared
    assert not rows["[0] first"].shared
    assert (rows["[4] frozen"].params, rows["[4] frozen"].trained) == (15, 0)
    assert rows["[2] body"].params == 28 == 20 + 8
    assert [row.depth for row in summary.rows] == [0, 0, 0, 1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Dense(16), (8, 32)),
        (nn.Conv(4, (3, 3)), (2, 8, 8, 3)),
        (nn.MultiHeadDotProductAttention(2), (2, 5, 8)),
    ],
)
def test_operations_are_those_of_xla_for_the_module_run_by_its_library(
    module: Any, shape: Any
) -> None:
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    native: Any = jax.jit(module.apply).lower(variables, x).cost_analysis()
    assert sb.Sequential([module]).summary(shape).flops == native["flops"] > 0


def test_operations_of_loops_are_counted_as_often_as_they_run() -> None:
    def steps(x: jax.Array, n: int, unroll: Any) -> jax.Array:
        return jax.lax.scan(
            lambda c, _: (jnp.sin(c @ EYE), None), x, None, length=n, unroll=unroll
        )[0]

    def inner(x: jax.Array) -> jax.Array:
        return jax.lax.scan(
            lambda c, _: (jax.jit(steps, static_argnums=(1, 2))(c, 3, False), None),
            x,
            None,
            length=4,
        )[0]

    def looped(x: jax.Array) -> jax.Array:
        for _ in range(12):
            x = jnp.sin(x @ EYE)
        return x

    expected = sb.Sequential([looped]).summary((2, 4)).flops
    assert expected == 12 * 2 * 2 * 4 * 4
    forms = [inner, *(functools.partial(steps, n=12, unroll=unroll) for unroll in (1, 3, 5, True))]
    for form in forms:  # a loop adds its counter
        assert sb.Sequential([form]).summary((2, 4)).flops == pytest.approx(expected, abs=4 * 12)
    unknown = sb.Sequential(
        [lambda x: jax.lax.while_loop(lambda c: c.sum() < 9, lambda c: c + 1, x)]
    )
    assert unknown.summary((2, 4)).flops is None


def test_without_shapes_it_shows_what_can_be_told() -> None:
    model = mixed()
    summary = model.summary()
    assert [row.params for row in summary.rows][:2] == [None, 0]
    assert summary.rows[-1].params == 6  # it came with its values
    assert "model.build" in str(summary)
    assert not any(row.inputs for row in summary.rows)


def test_what_a_call_would_refuse_a_summary_refuses() -> None:
    for model in (sb.Sequential([nn.Dense(4)]), sb.Sequential([nn.Dense(4)]).build((2, 3))):
        for show in (model.summary, functools.partial(sb.plot, model)):
            with pytest.raises(
                TypeError, match="no layer takes the keyword 'trainig'; did you mean 'training'"
            ):
                show(trainig=True)
            with pytest.raises(IndexError, match="there is no layer 7"):
                show(per_layer={7: {}})
            show(training=True, rng=jax.random.key(0))
    with pytest.raises(ValueError, match=r"a size given as None decides the shape of .*kernel"):
        sb.Sequential([nn.Dense(4)]).summary((None, None))
    with pytest.raises(TypeError, match=r"a call takes arrays, and got the shape \(2, 4\)"):
        sb.Sequential([nn.Dense(4)])((2, 4))


def test_what_is_not_known_is_said() -> None:
    model = sb.Sequential(
        [lambda x: jax.lax.while_loop(lambda c: c.sum() < 9, lambda c: c + 1, x), nn.Dense(3)]
    )
    summary = model.summary((2, 4))
    assert summary.flops is None
    assert f"at least {summary.rows[1].flops:.0f} FLOPs" in str(summary)
    built = sb.Sequential([nn.Dense(4), nn.Dense(3)]).build((2, 4))
    assert "give the shapes of the inputs" in str(built[1:].summary())


def test_a_model_that_stands_twice_is_shared() -> None:
    inner = sb.Sequential([nn.Dense(4)])
    rows = sb.Sequential([inner, inner]).summary((2, 4)).rows
    assert [row.shared for row in rows] == ["", "", "shared with [0]", "shared with [0][0]"]


def test_after_an_edit_that_does_not_fit_it_shows_the_rest() -> None:
    model = sb.Sequential([nn.Dense(4), nn.Dense(3)]).build((2, 4))
    with pytest.raises(Exception, match="shape"):
        model.summary((2, 5))
    model[0] = lambda x: x[:, :2]
    summary = model.summary()
    assert "what reaches the layers isn't known" in str(summary)
    assert "in layer [1] linen Dense(features=3); inputs: float32[2,2]" in str(summary)
    assert summary.params == 15


def test_keywords_and_modes_reach_the_layers() -> None:
    def widen(x: jax.Array, times: int = 1) -> jax.Array:
        return jnp.tile(x, (1, times))

    model = sb.Sequential([widen, nn.BatchNorm()])
    assert model.summary((2, 3), times=2).rows[-1].outputs == "float32[2,6]"
    training, evaluation = (
        model.summary((2, 3), training=training).flops or 0 for training in (True, False)
    )
    assert training > evaluation > 0
    with pytest.raises(TypeError, match="no layer takes the keyword 'tims'; did you mean 'times'"):
        model.summary((2, 3), tims=2)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colours_in_a_terminal_and_plain_text_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    summary = mixed().summary((None, 4))
    assert str(summary) == summary.text()
    assert summary.text().isascii()
    assert "\x1b" not in str(summary)
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = str(summary)
    assert "\x1b[" in shown
    monkeypatch.setenv("NO_COLOR", "1")
    plain = re.sub("\x1b\\[[01]m", "", str(summary))  # bold type is no colour
    assert "\x1b" not in plain
    assert max(map(len, plain.splitlines())) <= 80
    assert "state, trained, FLOPs: left out" in " ".join(plain.split())
    assert "Dense(features=4)" in plain
    monkeypatch.setenv("COLUMNS", "300")
    assert re.sub("\x1b\\[[01]m", "", str(summary)) == summary.text()


def test_a_number_is_never_cut_off_where_a_terminal_is_narrow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = sb.Sequential({"encoder_block_attention_projection": nn.Dense(128), "act": nn.relu})
    summary = model.summary((None, 784))
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("NO_COLOR", "1")
    for columns in range(10, 160, 10):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert "100,480" in str(summary), columns


def test_a_collection_of_what_is_no_array_shows_it() -> None:
    model = sb.Sequential([nn.Dense(2)]).build((None, 3))
    masks = jax.tree.map(lambda v: v.ndim > 1, model.vars())
    assert re.findall(r"(\w+) +(True|False)", repr(masks)) == [
        ("bias", "False"),
        ("kernel", "True"),
    ]


def test_programs_are_called_like_their_functions() -> None:
    def train_step(model: sb.Sequential, x: jax.Array) -> Any:
        return model(x)

    model = sb.Sequential([nn.Dense(2)]).build((None, 4))
    assert "jit_train_step" in sb.jit(train_step).lower(model, X).as_text()
    assert "jit_Sequential" in sb.jit(model).lower(X).as_text()


def test_a_notebook_gets_html_that_nothing_can_break() -> None:
    def evil(x: Any) -> Any:
        return x

    evil.__name__ = "<script>alert(1)</script>"
    model = sb.Sequential([evil, nn.Dense(2)])
    for shown in (model._repr_mimebundle_()["text/html"], model.summary((2, 3))._repr_html_()):
        assert "<script" not in shown
        assert "&lt;script&gt;" in shown
        assert ">linen<" in shown  # the word, not only its colour
        ElementTree.fromstring(shown)


def test_a_notebook_shows_what_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    model = sb.Sequential([nn.Dense(2)]).build((1, 2))
    monkeypatch.setattr("seqbridge._model.sequential.summarize", lambda *_, **__: 1 / 0)
    assert "Dense" in model._repr_mimebundle_()["text/html"]


# Trees


def test_a_tree_has_statistics_and_marks_what_is_shared() -> None:
    model = mixed().build((2, 4))
    text = treescope.render_to_text(model)
    assert "[0] first: linen Dense(features=4) {" in text
    assert "[0] haiku Linear(4) {" in text
    kernel = next(line for line in text.splitlines() if "kernel: Variable(" in line)
    assert "float32(4, 4)" in kernel
    assert "nonzero:16" in kernel
    assert "name='(Sequential).first(Dense).kernel'" in kernel
    assert text.count("} # Repeated python obj") + text.count("}, # Repeated python obj") == 2
    assert "trainable=False" in text
    for part in (model[0], model.vars(), model[0].kernel, model.deep):
        assert "float32(" in treescope.render_to_text(part)
    assert "<script" in treescope.render_to_html(model)


def test_the_paths_of_a_tree_lead_where_they_say() -> None:
    found = []

    def render(node: Any, path: str) -> Any:
        found.append((node, path))
        return (
            node.__treescope_repr__(path, render)
            if hasattr(node, "__treescope_repr__")
            else str(node)
        )

    model = mixed().build((2, 4))
    mlp = sb.Sequential(
        [eqx.nn.MLP(4, 2, 3, 1, key=jax.random.key(0)), hk.transform(lambda x: hk.Linear(3)(x))]
    )
    for root in (model, mlp.build((2, 4)), model.vars()):
        render(root, "root")
        for node, path in found:
            assert eval(path, {"root": root}) is node or eval(path, {"root": root}) == node
        found.clear()


def test_a_repr_stays_short() -> None:
    assert repr(sb.Sequential([nn.Dense(3), jax.nn.relu])) == (
        "Sequential(\n  [0] linen Dense(features=3)\n  [1] function relu\n)"
    )


# Pictures


def test_a_picture_has_every_layer_and_every_shape(tmp_path: Path) -> None:
    model = mixed()
    picture = sb.plot(model, (None, 4))
    assert not model.built
    root = ElementTree.fromstring(picture.svg)
    texts = [t.text for t in root.iter("{http://www.w3.org/2000/svg}text")]
    for row in model.summary((None, 4)).rows:
        assert any(t is not None and t.startswith(f"{row.place} {row.entry}"[:40]) for t in texts)
    assert texts.count("float32[None,4]") == 6  # also into the nested model, and inside it
    assert texts.count("float32[None,3]") == 3
    assert root.find("{http://www.w3.org/2000/svg}title") is not None
    fills = {
        r.get("stroke") for r in root.iter("{http://www.w3.org/2000/svg}rect") if r.get("stroke")
    }
    # linen, functions, Haiku, Equinox, NNX, and the frame of the nested model
    assert len(fills) == 6
    picture.save(tmp_path / "model.svg")
    assert (tmp_path / "model.svg").read_text() == picture.svg == picture._repr_svg_()
    picture.save(tmp_path / "model.PNG")
    assert (tmp_path / "model.PNG").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"\.svg or \.png"):
        picture.save(tmp_path / "model.pdf")
    assert len(list(tmp_path.iterdir())) == 2


def test_every_shape_is_inside_the_picture() -> None:
    for shapes in (((128, 256), (256, 512)), ((None, 224, 224, 256), (None, 224, 224, 256))):
        root = ElementTree.fromstring(
            sb.plot(sb.Sequential([jnp.add if None in shapes[0] else jnp.dot]), *shapes).svg
        )
        for text in root.iter("{http://www.w3.org/2000/svg}text"):
            assert float(text.get("x", 0)) + 7.3 * len(text.text or "") < float(
                root.get("width", 0)
            )


def test_a_picture_of_anything() -> None:
    for model in (
        nn.Dense(3),
        [nn.Dense(3), sb.Sequential([])],
        sb.Sequential([]),
        sb.Sequential([sb.Sequential([abs])]),
    ):
        ElementTree.fromstring(sb.plot(model).svg)
    assert "&lt;lambda&gt;" in sb.plot(lambda x: x).svg


# Differences


def test_differences_are_those_of_numpy() -> None:
    model = mixed().build((2, 4))
    other = copy.deepcopy(model)
    assert not sb.diff(model, other)
    assert str(sb.diff(model, other)) == "none of 16 variables differ"
    noise = np.zeros((4, 4), np.float32)
    noise[1, 2], noise[3, 3] = 0.5, -0.25
    other.body[0].w.assign(other.body[0].w + noise)
    (row,) = sb.diff(model, other)
    before = np.asarray(model.body[0].w.value)
    assert row.name == "(Sequential).body(Sequential)[0](Linear).w"
    assert (row.what, row.changed, row.size) == ("value", 2, 16)
    assert row.largest == pytest.approx(0.5)
    assert row.relative == pytest.approx(np.linalg.norm(noise) / np.linalg.norm(before), rel=1e-5)
    assert not sb.diff(model, other, atol=0.6)
    assert sb.diff(other, model).names == (row.name,)


def test_differences_of_files_trees_layers_and_collections(tmp_path: Path) -> None:
    model = sb.Sequential([nn.Dense(3), nn.Dropout(0.5), functools.partial(hk.Linear, 2)]).build(
        (2, 4)
    )
    model.save(tmp_path / "model.safetensors")
    assert not sb.diff(model, tmp_path / "model.safetensors")
    assert not sb.diff(tmp_path / "model.safetensors", model.vars())
    model(X, training=True)
    assert sb.diff(model, tmp_path / "model.safetensors").names == ("(Sequential).rng",)
    assert not sb.diff(model.variables, model.vars().subset("params"))
    assert not sb.diff(model[0], model[0].native["params"])
    np.savez(
        tmp_path / "layer.npz",
        kernel=np.ones((4, 3), np.float16),
        bias=np.zeros(3, np.float32),
        more=np.ones(1),
    )
    rows = {row.name: row.what for row in sb.diff(model[0], str(tmp_path / "layer.npz"))}
    assert rows == {"kernel": "value, dtype float32, float16", "more": "only in the second"}
    model[0].kernel.value = jnp.ones((4, 3))
    rows = {row.name: row.what for row in sb.diff(model[0], str(tmp_path / "layer.npz"))}
    assert rows == {"kernel": "dtype float32, float16", "more": "only in the second"}
    wider = sb.Sequential([nn.Dense(5), nn.Dropout(0.5)]).build((2, 4))
    found = {row.name: row.what for row in sb.diff(model, wider)}
    assert found["(Sequential)[0](Dense).kernel"] == "shape (4, 3), (4, 5)"
    assert found["(Sequential)[2](Linear).w"] == "only in the first"


def test_names_of_classes_need_not_be_the_same() -> None:
    model = sb.Sequential([nn.Dense(3)]).build((2, 4))
    same = {f"[0].{name}": box.value for name, box in model[0].vars().items()}
    assert not sb.diff(model, same)
    other = sb.Sequential([eqx.nn.Linear(4, 3, key=jax.random.key(0))])
    found = {row.name: row.what for row in sb.diff(model, other)}
    assert found == {
        "(Sequential)[0](Dense).bias": "value",
        "(Sequential)[0](Dense).kernel": "only in the first",
        "(Sequential)[0](Linear).weight": "only in the second",
    }


def test_infinite_and_large_numbers_differ() -> None:
    def tree(*values: Any) -> dict[str, np.ndarray]:
        return {"w": np.array(values)}

    options: dict[str, Any]
    for options in ({}, {"rtol": 0.1}, {"atol": 1.0}):
        for a, b in ((1.0, np.inf), (np.inf, 1.0), (np.inf, -np.inf)):
            assert len(sb.diff(tree(a, 2.0), tree(b, 2.0), **options)) == 1
        assert not sb.diff(tree(np.inf), tree(np.inf), **options)
    assert sb.diff(tree(2**62), tree(2**62 + 1))[0].largest == 1
    assert sb.diff(tree(2**62), tree(2**62 + 100), atol=0.5)
    low, high = (np.array([n], np.int8) for n in (-128, 127))
    assert [sb.diff({"w": a}, {"w": b})[0].largest for a, b in ((low, high), (high, low))] == [
        255,
        255,
    ]
    assert sb.diff({"w": 1.0}, {"w": 3.0})[0].largest == 2  # a number is an array, too
    with pytest.raises(TypeError, match="compares numbers, and w holds none"):
        sb.diff({"w": "a"}, {"w": "b"})
    assert not sb.diff(tree(1.0, 100.0), tree(1.0, 101.0), rtol=0.1)
    assert sb.diff(tree(1.0, 100.0), tree(1.2, 101.0), rtol=0.1)[0].changed == 1


def test_keys_differ_without_numbers() -> None:
    one, two = ({"k": jax.random.key(n)} for n in (0, 1))
    assert not sb.diff(one, one)
    (row,) = sb.diff(one, two, atol=1e9)
    assert (row.what, row.changed) == ("another key", 0)
    for given in (None, 3, {"model": sb.Sequential([nn.relu])}):
        with pytest.raises(TypeError, match="diff takes models"):
            sb.diff(one, given)
    with pytest.raises(RuntimeError, match="comparison inside a JAX transform"):
        jax.jit(lambda x: sb.diff({"x": x}, {"x": x}))(1.0)


def test_not_a_number_is_the_same_as_itself_and_unlike_any_other() -> None:
    nan, one = ({"w": jnp.array([value, 1.0])} for value in (jnp.nan, 1.0))
    assert not sb.diff(nan, nan)
    (row,) = sb.diff(nan, one)
    assert row.changed == 1
    assert np.isnan(row.largest)
    (row,) = sb.diff(
        {"w": jnp.array([jnp.nan, jnp.inf, 1.0, 3.0])}, {"w": jnp.array([1.0, 1.0, 1.0, 1.0])}
    )
    assert (row.what, row.changed, row.largest) == ("value, 2 not finite", 3, 2.0)
    assert row.relative == pytest.approx(2 / 10**0.5)
    with pytest.raises(RuntimeError, match="isn't built"):
        sb.diff(sb.Sequential([nn.Dense(1)]), one)
    with pytest.raises(FileNotFoundError):
        sb.diff("nowhere.safetensors", one)


# What each layer returns


def test_what_each_layer_returns_is_what_the_model_up_to_it_returns() -> None:
    model = mixed()
    outputs = model.trace(X, training=False)
    assert model.built
    assert list(outputs)[2] == "(Sequential).body(Sequential)[0](Linear)"
    for i, name in enumerate(["first", "act", "body[1]", "again", "frozen", "deep", "norm"]):
        np.testing.assert_array_equal(outputs[name], model[: i + 1](X, training=False))
    assert outputs["(Sequential).norm(LayerNorm)"] is outputs["norm"]
    assert outputs["body[0]"].shape == (2, 4)
    with pytest.raises(KeyError, match="no layer is called 'frist'; did you mean 'first'"):
        outputs["frist"]
    assert outputs["body"] is outputs["body[1]"]
    assert "conv" not in outputs
    assert "act" in outputs
    assert outputs.get("act") is outputs["act"]
    assert outputs.get("conv", 3) == 3
    with pytest.raises(KeyError, match=r"no layer is called 0\. There are first, act, "):
        outputs[0]  # pyright: ignore[reportArgumentType]
    assert "(Sequential).act(relu) float32[2,4]" in " ".join(repr(outputs).split())


def test_it_is_a_call() -> None:
    model, other = (
        sb.Sequential([nn.BatchNorm(), nn.Dropout(0.5)]).build((2, 4)) for _ in range(2)
    )
    outputs = model.trace(X, training=True)
    np.testing.assert_array_equal(outputs["[1]"], other(X, training=True))
    assert not sb.diff(model, other)
    key = jax.random.key(3)
    np.testing.assert_array_equal(
        model.trace(X, training=True, rng=key, per_layer={0: {"training": False}})["[1]"],
        other(X, training=True, rng=key, per_layer={0: {"training": False}}),
    )
    with pytest.raises(TypeError, match="pass training=True or training=False"):
        model.trace(X)


def test_in_a_program_it_keeps_its_order() -> None:
    model = sb.Sequential({"z": nn.Dense(3), "a": jnp.sin}).build((2, 4))
    outputs = sb.jit(lambda model, x: model.trace(x))(model, X)
    assert list(outputs) == ["(Sequential).z(Dense)", "(Sequential).a(sin)"]
    doubled = jax.tree.map(lambda a: 2 * a, outputs)
    np.testing.assert_allclose(doubled["a"], 2 * model(X), rtol=1e-6)


def test_programs_show_the_names_of_layers() -> None:
    model = mixed().build((2, 4))
    text = (
        sb.jit(lambda model, x: model(x, training=False)).lower(model, X).as_text(debug_info=True)
    )
    for scope in (
        ".first(Dense)",
        ".body(Sequential)/[0](Linear)",
        ".deep(Repeat)",
        ".norm(LayerNorm)",
    ):
        assert scope in text
