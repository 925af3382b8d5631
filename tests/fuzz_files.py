"""Whole weight files of each reader, how each is read, and what may happen to one on its way."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

os.environ.setdefault("KERAS_BACKEND", "jax")

import equinox as eqx
import h5py
import haiku as hk
import jax
import jax.numpy as jnp
import ml_dtypes
import msgpack
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization
from flax.core import freeze
from safetensors.numpy import save_file

import seqbridge as sb
from helpers import bits

# What is in a file or a folder, by the path in it.
Files = dict[str, bytes]


class Wrong(Exception):
    """Something that must not be, whatever is in a file."""


class Reader(NamedTuple):
    """How files of one kind are made, read, and changed behind their checksums and lengths."""

    write: Callable[[Path], None]
    read: Callable[[str], Any] = sb.read
    inside: Callable[[bytes, Random], bytes] = lambda data, chance: data
    tokens: tuple[bytes, ...] = ()
    expands: int = (
        16  # how many bytes of arrays one of the file may become: a bool in a pickle is an array
    )


# Whole files

ARRAYS: Any = {
    "kernel": np.arange(12, dtype=np.float32).reshape(3, 4) / 7,
    "turned": np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
    "half": np.arange(5).astype(ml_dtypes.bfloat16),
    "none": np.zeros((0, 3), np.float32),
    "one": np.float32(1.5),
    "yes": np.array([True, False]),
    "complex": np.array([1 + 2j], np.complex64),
}
BIG = {"big": np.arange(3, dtype=">f4"), **ARRAYS}
TREE: Any = {
    "params": {"Dense_0": {n: a for n, a in ARRAYS.items() if n != "one"}},
    "steps": [np.int32(3), np.ones(2)],
}


def safetensors(folder: Path) -> None:
    arrays = {n: np.asarray(a) for n, a in ARRAYS.items() if n != "complex"}
    save_file(arrays, folder / "plain.safetensors")
    save_file(arrays, folder / "noted.safetensors", {"format": "pt", "who": "somebody"})


def npz(folder: Path) -> None:
    np.savez(folder / "stored.npz", **BIG)
    np.savez_compressed(folder / "packed.npz", **BIG, zeros=np.zeros(5000, np.float32))


def eqx_files(folder: Path) -> None:
    eqx.tree_serialise_leaves(folder / "plain.eqx", list(BIG.values()))
    with open(folder / "noted.eqx", "wb") as file:
        file.write(b'{"width": 5}\n')
        np.lib.format.write_array(file, BIG["kernel"], version=(2, 0))
        np.lib.format.write_array(file, BIG["turned"])


def msgpacked(folder: Path) -> None:
    (folder / "plain.msgpack").write_bytes(
        serialization.to_bytes({**TREE, "scalars": [1, 2.5, True, 1 + 2j]})
    )
    before, serialization.MAX_CHUNK_SIZE = serialization.MAX_CHUNK_SIZE, 32
    try:
        (folder / "chunks.msgpack").write_bytes(
            serialization.msgpack_serialize(TREE["params"]["Dense_0"])
        )
    finally:
        serialization.MAX_CHUNK_SIZE = before


def h5(folder: Path) -> None:
    for name, version in (("old", "earliest"), ("new", "latest")):
        with h5py.File(
            folder / f"{name}.weights.h5", "w", libver=version, track_order=False
        ) as file:
            group = file.create_group("layers/dense/vars")
            group["0"], group["1"] = ARRAYS["kernel"], ARRAYS["turned"]
            group.create_dataset(
                "2", data=np.zeros((8, 8), "f4"), chunks=(4, 4), compression="gzip", shuffle=True
            )
            group.create_dataset("3", data=np.arange(8.0), chunks=(8,), fletcher32=True)
            group.attrs["name"] = "dense"
            file["notes"] = "text"


def pickles(folder: Path) -> None:
    flat = hk.data_structures.to_immutable_dict(
        {"linear": {"w": ARRAYS["kernel"], "b": ARRAYS["half"]}}
    )
    trees = {
        "plain": {"linear": ARRAYS, "numbers": [1, 2.5, True, 1 + 2j, (3,)]},
        "jax": {"linear": {"w": jnp.ones((2, 3)), "b": jnp.zeros(3, jnp.bfloat16)}},
        "maps": (flat, OrderedDict(a=BIG["big"]), freeze({"b": BIG["one"]})),
    }
    for protocol in (0, 2, 4, 5):
        for name, tree in trees.items():
            (folder / f"{name}{protocol}.pkl").write_bytes(pickle.dumps(tree, protocol))


def orbax(folder: Path) -> None:
    tree = {
        "params": {"kernel": ARRAYS["kernel"], "half": ARRAYS["half"]},
        "steps": [np.int32(3), np.ones(2)],
    }
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "plain", tree)
    forms: tuple[dict[str, Any], ...] = ({"use_ocdbt": False}, {"use_zarr3": True})
    for options in forms:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
            checkpointer.save(folder / "-".join(options), tree)
    with ocp.CheckpointManager(folder / "steps") as manager:
        manager.save(7, args=ocp.args.StandardSave(tree))


# Files of our own, which have checksums: what is read is what was saved, or an error


def variables() -> sb.VarCollection:
    weights = sb.Variable(jnp.asarray(ARRAYS["kernel"]), name="kernel")
    return sb.VarCollection({
        "(Sequential)[0](Dense).kernel": weights,
        "tied": weights,
        "small": sb.Variable(jnp.arange(6).astype(jnp.int4), name="small", kind="state"),
        "half": sb.Variable(jnp.asarray(ARRAYS["half"]), name="half"),
        "none": sb.Variable(jnp.zeros((0, 3)), name="none"),
        "rng": sb.Variable(jax.random.key(3), name="rng", kind="rng"),
    })  # fmt: skip


def check_loaded(load: Callable[[sb.VarCollection], Any]) -> dict[str, Any]:
    """Raise `Wrong` if what is loaded isn't what was saved, or if an error changes anything."""
    given = variables()
    want = {name: bits(v.value) for name, v in given.items()}
    for v in given.values():
        v.assign(jax.random.key(4) if v.kind == "rng" else jnp.ones_like(v.value))
    before = {name: bits(v.value) for name, v in given.items()}
    try:
        report = load(given)
    except BaseException:
        if {name: bits(v.value) for name, v in given.items()} != before:
            raise Wrong("an error, and yet something was loaded") from None
        raise
    loaded = {given[name] for name in report.loaded}  # one that has two names is told by the first
    for name, v in given.items():
        if bits(v.value) != (want if v in loaded else before)[name]:
            raise Wrong(f"{name} is another than was saved")
    return {}


def own(folder: Path) -> None:
    variables().save(folder / "own.safetensors")


def read_own(path: str) -> Any:
    return check_loaded(lambda given: given.load(path, strict=False))


def checkpoint(folder: Path) -> None:
    with sb.Checkpoint(folder / "run", here=variables()) as writer:
        writer.save(0)


def read_checkpoint(path: str) -> Any:
    def load(given: sb.VarCollection) -> Any:
        with sb.Checkpoint(path, here=given) as reader:
            if reader.restore(strict=False) is None:
                raise FileNotFoundError(path)
            return reader.reports["here"]

    return check_loaded(load)


# What happens to one

NUMBERS = (
    0, 1, 2, 3, 4, 7, 8, 127, 128, 255, 256, 2**15 - 1, 2**15, 2**16 - 1, 2**16, 2**24,
    2**31 - 1, 2**31, 2**32 - 1,
    2**32, 2**40, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1,
)  # fmt: skip
NAMES = (
    "",
    ".",
    "..",
    "../../x",
    "/etc/x",
    "C:\\x",
    "a\0b",
    "x" * 5000,
    "__metadata__",
    "seqbridge",
    "0",
    "ü",
    "a.b",
)
STRANGE: tuple[Any, ...] = (
    *NUMBERS, *NAMES, -1, -(2**63), 2**200, 0.5, 1e308, math.nan, None, True,
    [], {}, [1, 2**40], [[[[]]]], {"a": 1},
    "F32", "F64", "BF16", "C64", "U8", "object", "float32", "int4", "V4", "S8", "f4,f4",
    "complex64", "M8[s]",
)  # fmt: skip


def damaged(data: bytes, others: list[bytes], tokens: tuple[bytes, ...], chance: Random) -> bytes:
    """Return what a bad disk, a bad line or an attacker makes of it."""
    made = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        at = chance.randrange(len(made) + 1)
        # Most of what matters stands at the beginning.
        at = chance.choice((at, at, min(at, chance.randrange(256))))
        some = chance.choice(
            (1, 2, 4, 8, chance.randrange(1, 64), chance.randrange(1, len(made) + 2))
        )
        match chance.randrange(9):
            case 0 | 1 if at < len(made):
                made[at] ^= 1 << chance.randrange(8)
            case 2:
                del made[at : at + some]
            case 3:
                made[at:at] = chance.randbytes(min(some, 64))
            case 4:
                made[at:at] = made[at : at + some]
            case 5:
                number, size = chance.choice(NUMBERS), chance.choice((1, 2, 4, 8))
                made[at : at + size] = (number % 256**size).to_bytes(
                    size, chance.choice(("little", "big"))
                )
            case 6:
                other = chance.choice(others)
                start = chance.randrange(len(other) + 1)
                made[at : at + chance.choice((0, some))] = other[start : start + some]
            case 7 if tokens:
                made[at : at + chance.choice((0, 1, some))] = chance.choice(tokens)
            case _:
                del made[at:]
    return bytes(made)


def edited(node: Any, chance: Random) -> Any:
    """A tree in which one thing is another, or gone, or has another name."""
    if isinstance(node, dict) and node and chance.random() < 0.9:
        name, how = chance.choice(list(node)), chance.random()
        if how < 0.7:
            return {**node, name: edited(node[name], chance)}
        if how < 0.8:
            return {n: value for n, value in node.items() if n != name}
        other = chance.choice((*NAMES, name))
        return (
            {(other if n == name else n): v for n, v in node.items()}
            if how < 0.9
            else {**node, other: node[name]}
        )
    if isinstance(node, list | tuple) and node and chance.random() < 0.9:
        at = chance.randrange(len(node))
        return [
            *node[:at],
            *([edited(node[at], chance)] * chance.choice((0, 1, 1, 1, 1, 2))),
            *node[at + 1 :],
        ]
    if isinstance(node, msgpack.ExtType):
        inner = msgpack.unpackb(node.data, strict_map_key=False)
        return msgpack.ExtType(
            chance.choice((node.code, node.code, 1, 2, 3)), packed(edited(inner, chance))
        )
    if isinstance(node, str) and node.startswith("{"):
        return json.dumps(edited(json.loads(node), chance))
    return (
        node + chance.choice((-1, 1))
        if type(node) is int and chance.random() < 0.3
        else chance.choice(STRANGE)
    )


def packed(tree: Any) -> Any:
    try:
        return msgpack.packb(tree)
    except (OverflowError, ValueError):
        return b""


def edited_json(data: bytes, chance: Random) -> bytes:
    try:
        return json.dumps(edited(json.loads(data), chance)).encode()
    except ValueError:
        return data


def edited_header(data: bytes, chance: Random) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = edited_json(data[8 : 8 + length], chance)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def edited_msgpack(data: bytes, chance: Random) -> bytes:
    return packed(edited(msgpack.unpackb(data, strict_map_key=False), chance)) or data


def edited_array(data: bytes, chance: Random) -> bytes:
    """Another dtype, order or shape in one of the headers."""
    found = list(
        re.finditer(rb"\x93NUMPY.{4}(\{[^\n]*\n)|\x93NUMPY.{6}(\{[^\n]*\n)", data, re.DOTALL)
    )
    if not found:
        return data
    place = chance.choice(found)
    dtypes = (
        "<f4",
        ">f8",
        "|V2",
        "|V0",
        "|O",
        "<U3",
        "|S4",
        "<M8[s]",
        "<c8",
        "|b1",
        "<f2",
        "f4,f4",
        "(3,)f4",
        "nope",
    )
    numbers = tuple(chance.choice((*NUMBERS, -1, 2**200, 3, 4)) for _ in range(chance.randrange(4)))
    header = {
        "descr": chance.choice(dtypes),
        "fortran_order": chance.choice((True, False, 3)),
        "shape": numbers,
    }
    text = f"{header!r}{' ' * chance.randrange(70)}\n".encode()
    head = b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little")
    return data[: place.start()] + head + text + data[place.end() :]


def edited_archive(data: bytes, chance: Random) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(member.filename, archive.read(member)) for member in archive.infolist()]
    at = chance.randrange(len(members))
    name, content = members[at]
    match chance.randrange(4):
        case 0:
            content = edited_array(content, chance)
        case 1:
            content = damaged(content, [content], (), chance)
        case 2:
            name = chance.choice(NAMES) + chance.choice(("", ".npy"))
        case _:
            content = content[:128] + bytes(chance.choice((2**10, 2**20, 2**24)))
    members[at : at + chance.choice((0, 1, 1))] = [(name.replace("\0", "~"), content)]
    with (
        warnings.catch_warnings(action="ignore"),
        zipfile.ZipFile(
            made := io.BytesIO(), "w", chance.choice((0, zipfile.ZIP_DEFLATED)), True, 1
        ) as archive,
    ):
        for n, value in members:
            archive.writestr(n or "a", value)
    return made.getvalue()


def mutated(files: Files, all_files: list[Files], reader: Reader, chance: Random) -> Files:
    """Return an input of the fuzzer: a file, or a folder with one or two of its files, changed."""
    made = dict(files)
    for _ in range(chance.choice((1, 1, 2)) if len(files) > 1 else 1):
        name = chance.choice(sorted(made))
        if len(made) > 1 and (how := chance.random()) < 0.1:
            data = made.pop(name)
            if how < 0.05:
                made[chance.choice(sorted(made))] = data
            continue
        inside = edited_json if made[name].startswith(b"{") and len(files) > 1 else reader.inside
        if (how := chance.random()) < 0.4:
            made[name] = inside(made[name], chance)
        if how > 0.35:
            others = [data for other in all_files for data in other.values()]
            made[name] = damaged(made[name], others, reader.tokens, chance)
    return made


def files_of(path: Path) -> Files:
    if path.is_file():
        return {"": path.read_bytes()}
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def leaves(value: Any) -> Iterator[tuple[str, Any]]:
    """The arrays of a result and their names."""
    if isinstance(value, dict | list | tuple):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from ((f"{name}.{rest}", leaf) for rest, leaf in leaves(inner))
    else:
        yield "", value


def check_value(value: Any, size: int, expands: int) -> None:
    """Raise `Wrong` for anything but numbers and names, and for more than such a file holds."""
    arrays: dict[int, np.ndarray] = {}
    for name, leaf in leaves(value):
        if not isinstance(leaf, np.ndarray) or "\0" in name:
            raise Wrong(f"{name!r:.80} is {type(leaf).__name__}")
        number = leaf.dtype.kind in "biufcU" or leaf.dtype.name in vars(ml_dtypes)
        if not number or not leaf.dtype.isnative or not leaf.flags.writeable:
            raise Wrong(f"{name!r:.80} is of {leaf.dtype}, {leaf.flags}")
        arrays[id(leaf)] = leaf
    if (total := sum(array.nbytes for array in arrays.values())) > 2**26 + expands * size:
        raise Wrong(f"{size} bytes became {total}")


def read_pickle(path: str) -> Any:
    return sb.read(path, allow_pickle=True)


PICKLED = (
    b"ccollections\nOrderedDict\n", b"cnumpy\nndarray\n", b"cnumpy\ndtype\n",
    b"cnumpy.core.multiarray\nscalar\n", b"cml_dtypes\nbfloat16\n", b"c_codecs\nencode\n",
    b"cbuiltins\ncomplex\n", b"cos\nsystem\n", b"(", b"t", b"R", b"b",
    b"}", b"]", b"N", b"N\x86", b"\x85", b"\x86", b"\x87", b"h\x00", b"q\x00",
    b"0", b"1", b"2", b"a", b"e", b"s", b"u", b"K\x04", b"U\x02f4", b"U\x0c__defaults__",
    b"\x81", b"\x92", b"\x94", b"\x95", b"i", b"o", b"Q", b"P0\n", b".",
)  # fmt: skip
PACKED = (
    b"\xc0", b"\x80", b"\x81", b"\x90", b"\x91", b"\xc7\x00\x01", b"\xc9\xff\xff\xff\xff\x01",
    b"\xdf\xff\xff\xff\xff",
)  # fmt: skip
HEADER = (
    b'"',
    b"{",
    b"}",
    b"[",
    b",",
    b"-1",
    b"99999999999",
    b"seqbridge",
    b"crc32",
    b"__metadata__",
)
ARCHIVE = (b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6", b"PK\6\7")
STORE = (b"TREE", b"SNOD", b"HEAP", b"OHDR", b"FRHP", b"BTHD")
ARRAY = (b"'|O'", b"\x93NUMPY", b"(-1,)", b"(99999999999,)", b"'<U3'")
READERS = {
    "own": Reader(own, read_own, tokens=HEADER),
    "safetensors": Reader(safetensors, inside=edited_header, tokens=HEADER),
    "npz": Reader(npz, inside=edited_archive, tokens=ARCHIVE, expands=100),
    "eqx": Reader(eqx_files, inside=edited_array, tokens=ARRAY),
    "msgpack": Reader(msgpacked, inside=edited_msgpack, tokens=PACKED),
    "h5": Reader(h5, tokens=STORE, expands=100),
    "pickle": Reader(pickles, read_pickle, tokens=PICKLED),
    "orbax": Reader(orbax, expands=100),
    "checkpoint": Reader(checkpoint, read_checkpoint),
}
