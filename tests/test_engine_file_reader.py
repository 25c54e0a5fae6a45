"""Engine files from strangers: whatever the bytes are, the native reader opens them safely or says what is wrong."""

from __future__ import annotations

import copy
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unet_fast import Engine, _native
from unet_fast import engine_file as engine_files
from unet_fast.errors import EngineFileError

Document = dict[str, Any]


@pytest.fixture(scope="module")
def good(engine_file: Callable[..., Path]) -> bytes:
    return engine_file("plain").read_bytes()


def open_native(data: bytes, precision: str = "float32") -> _native.Engine:
    """The C++ reader without the checks that `Engine` adds."""
    return _native.Engine(
        path=None,
        data=data,
        device="cpu",
        precision=precision,
        cpu_isa="auto",
        threads=1,
        refuse_embedded_code=True,
        keep_warm_ms=0,
    )


def run_once(engine: _native.Engine) -> None:
    info = engine.info()
    side = info["minimum"]
    result = np.full((1, side - 2 * info["margin"], side - 2 * info["margin"], info["classes"]), np.nan, np.float32)
    image = np.full((1, side, side, info["channels"]), 100, np.uint8)
    engine.segment(image, result, max_value=0.0, tiling=3, tile=0, overlap=0, threshold=0.0)


def split(data: bytes) -> tuple[Document, bytes]:
    """The safetensors header and the bytes behind it."""
    (length,) = struct.unpack_from("<Q", data)
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(header: Document | bytes, data: bytes) -> bytes:
    """A file of them, with the checksum that belongs to it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    start = struct.pack("<Q", len(text)) + text + data[:-4]
    return start + engine_files.checksum(start) if data else start


def with_document(data: bytes, change: Callable[[Document], object]) -> bytes:
    header, tensors = split(data)
    document = json.loads(header["__metadata__"]["unet_fast"])
    change(document)
    header["__metadata__"]["unet_fast"] = json.dumps(document)
    return join(header, tensors)


def refused(data: bytes, message: str) -> None:
    with pytest.raises(EngineFileError, match=message):
        open_native(data)


def put(*path: str | int, value: Any) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        place: Any = document
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


def drop(*path: str | int) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        place: Any = document
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]

    return change


def all_of(*changes: Callable[[Document], object]) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        for one in changes:
            one(document)

    return change


# In "plain": op 0 stem, 1 conv with pooling, 4 bottleneck.conv0, 6 up_conv, 9 head; buffer 0 image, 1 encoder0.relu0,
# 2 encoder0.relu1, 3 pool0.
LONG = "x" * 300
DOCUMENTS: list[tuple[str, Callable[[Document], object], str]] = [
    # the document's own values
    ("no version", drop("format_version"), "'format_version' is missing"),
    ("newer", put("format_version", value=2), "format version 2.*reads versions up to 1.*update unet_fast"),
    ("version 0", put("format_version", value=0), "format_version must be an integer from 1"),
    ("version text", put("format_version", value="1"), "format_version must be an integer.*is '1'"),
    ("huge number", put("format_version", value=2**64 - 1), "format_version must be an integer"),
    ("no ops", drop("ops"), "'ops' is missing"),
    ("empty ops", put("ops", value=[]), "ops has 0 items"),
    ("ops object", put("ops", value={}), "ops must be a list"),
    ("too many ops", lambda d: d["ops"].extend([d["ops"][0]] * 5000), "ops has 50.. items, expected 1 to 4096"),
    ("precision", put("precision", value="int3"), "precision must be one of float32, bf16, fp16, int8, is 'int3'"),
    ("long name", put("name", value=LONG), "name has 300 bytes"),
    ("channels 0", put("input", "channels", value=0), "input.channels must be an integer from 1 to 4, is 0"),
    ("channels 1.5", put("input", "channels", value=1.5), "input.channels must be an integer"),
    ("channels true", put("input", "channels", value=True), "input.channels must be an integer"),
    ("more channels", put("input", "channels", value=2), "has 1 items, expected 2"),
    ("kind", put("input", "normalisation", "kind", value="guess"), "normalisation.kind must be one of"),
    ("std 0", put("input", "normalisation", "std", value=[0.0]), r"std\[0\] must be a number"),
    ("mean text", put("input", "normalisation", "mean", value=["0"]), r"mean\[0\] must be a number"),
    ("output kind", put("output", "kind", value="argmax"), "output.kind must be one of"),
    ("threshold", put("output", "threshold", value=1.0), "output.threshold must be a number"),
    ("output channels", put("output", "channels", value=2), "head_weight has shape.*expected"),
    ("many classes", put("output", "channels", value=10**6), "output.channels must be an integer from 1 to 65536"),
    ("multiple 0", put("size", "multiple", value=0), "size.multiple"),
    ("multiple 3", put("size", "multiple", value=3), "size.minimum 4 is not legal"),
    ("multiple 2", put("size", "multiple", value=2), "not a whole number for every legal size"),
    ("remainder", put("size", "remainder", value=4), "size.remainder"),
    ("minimum", put("size", "minimum", value=-4), "size.minimum"),
    ("tile", put("tile", value=33), "tile 33 is not a legal size"),
    ("huge tile", put("tile", value=2**40), "tile must be an integer"),
    ("margin", put("margin", value=2), "margin 2 leaves nothing"),
    ("halo", put("halo", value=5), "halo 5 is not a multiple of 4"),
    ("slots", put("slots", value=-1), "slots must be"),
    ("golden", put("golden", value=[{"image": "nowhere", "probability": "x"}]), "there is no tensor 'nowhere'"),
    ("kernels", put("kernels", value=[7]), r"kernels\[0\] must be an object"),
    # buffers
    ("no buffers", put("buffers", value=[]), "buffers has 0 items"),
    ("name twice", put("buffers", 2, "name", value="encoder0.relu0"), "stands twice"),
    ("empty name", put("buffers", 2, "name", value=""), "must be a name"),
    ("control", put("buffers", 2, "name", value="a\x00b"), r"must be a name without control characters, is 'a\?b'"),
    ("slot", put("buffers", 1, "slot", value=4), r"buffers\[1\].slot must be an integer from -1 to 3"),
    ("second image", put("buffers", 1, "slot", value=-1), "only the image has -1"),
    ("image slot", put("buffers", 0, "slot", value=0), "only the image has -1"),
    ("image name", put("buffers", 0, "name", value="picture"), "'image', which is not a buffer"),
    ("image size", put("buffers", 0, "height", value=[2, 0, 1]), "buffer 0 must be 'image'"),
    ("extent", put("buffers", 1, "height", value=[1, 0]), "has 2 items, expected 3"),
    ("divide 0", put("buffers", 1, "height", value=[1, 0, 0]), r"height\[2\] must be"),
    ("fraction", put("buffers", 3, "height", value=[1, 1, 2]), "not a whole number for every legal size"),
    ("negative", put("buffers", 3, "width", value=[1, -4, 2]), "less than 1"),
    ("overflow", put("buffers", 1, "width", value=[2**31 - 1, 0, 1]), "out of bounds"),
    ("unlike", put("buffers", 3, "height", value=[1, 0, 4]), "pooled output must have half the size"),
    ("wider", put("buffers", 1, "channels", value=16), "weight has shape .8, 3, 3, 1., expected .16, 3, 3, 1."),
    ("halo", put("buffers", 1, "halo", value=0), "pads 'encoder0.relu0' by 1, which has a halo of 0"),
    ("huge halo", put("buffers", 1, "halo", value=10**6), "halo must be an integer from 0 to 16"),
    ("unused", lambda d: d["buffers"].append({**d["buffers"][1], "name": "more"}), "'more' is never written"),
    ("shared slot", put("buffers", 2, "slot", value=0), "live at the same time in slot 0"),
    # ops
    ("unknown op", put("ops", 1, "op", value="attention"), "is 'attention', known ops are stem, conv"),
    ("op twice", put("ops", 1, "name", value="encoder0.conv0"), "second op of the name 'encoder0.conv0'"),
    ("long op name", put("ops", 1, "name", value=LONG), "300 bytes"),
    ("no kernel", drop("ops", 1, "kernel"), r"ops\[1\]: 'kernel' is missing"),
    ("kernel 5", put("ops", 1, "kernel", value=[5, 3]), r"kernel \[5, 3\] is not within 1 and 4"),
    ("kernel 1", put("ops", 1, "kernel", value=[1, 1]), r"padding \[1, 1, 1, 1\] is not smaller than the kernel"),
    ("kernel 2", put("ops", 1, "kernel", value=[2, 2]), "tensor weight has shape"),
    ("padding", put("ops", 1, "padding", value=[1, 1, 1, 0]), "width of the output is"),
    ("negative padding", put("ops", 1, "padding", value=[-1, 1, 1, 1]), "padding .* is not within 0"),
    ("up padding", put("ops", 6, "padding", value=[1, 0, 1, 0]), "padding must be .0, 0, 0, 0. or"),
    ("crop and padding", put("ops", 6, "crop", value=[1, 0]), "both padding .* and crop"),
    ("no crop", all_of(put("ops", 6, "padding", value=[0] * 4), put("ops", 6, "crop", value=[1, 1])), "does not fit"),
    ("activation", put("ops", 1, "activation", value="gelu"), "activation must be one of none, relu"),
    ("fused softmax", put("ops", 1, "activation", value="softmax"), "must be none, relu or leaky_relu here"),
    ("no slope", put("ops", 1, "activation", value="leaky_relu"), "'slope' is missing"),
    ("no input", put("ops", 1, "inputs", value=[]), "inputs has 0 items, expected 1"),
    ("two inputs", put("ops", 1, "inputs", value=["encoder0.relu0"] * 2), "inputs has 2 items, expected 1"),
    ("input", put("ops", 1, "inputs", value=["nothing"]), "is 'nothing', which is not a buffer"),
    ("image to conv", put("ops", 1, "inputs", value=["image"]), "cannot read 'image', which only stem"),
    ("stem elsewhere", put("ops", 0, "inputs", value=["pool0"]), "reads 'pool0' instead of the image"),
    ("write image", put("ops", 0, "outputs", value=["image"]), "writes to the image"),
    ("early", lambda d: d["ops"].insert(1, d["ops"].pop(4)), "reads buffer 'pool1' before it is written"),
    ("second write", put("ops", 1, "outputs", value=["encoder0.relu0", "pool0"]), "a second time"),
    ("loop", put("ops", 1, "inputs", value=["encoder0.relu1"]), "reads buffer 'encoder0.relu1' before it is written"),
    ("no end", lambda d: d["ops"].pop(), "the last op, and only that"),
    ("skip misfit", put("ops", 6, "inputs", value=["bottleneck.relu1", "encoder0.relu1"]), "weight_skip has shape"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), [pytest.param(*case[1:], id=case[0]) for case in DOCUMENTS])
def test_wrong_documents(good: bytes, change: Callable[[Document], object], message: str) -> None:
    refused(with_document(good, change), f"(?s){message}")


def test_messages_say_what_to_do(good: bytes) -> None:
    refused(with_document(good, drop("ops")), "^damaged engine file: .*; freeze the network again$")


def test_unknown_keys_are_ignored(good: bytes) -> None:
    changes = [put("future", value={"x": 1}), put("ops", 0, "note", value="x"), put("buffers", 0, "unit", value="px")]
    run_once(open_native(with_document(good, all_of(*changes))))


def header_change(change: Callable[[Document], object]) -> Callable[[bytes], bytes]:
    def apply(data: bytes) -> bytes:
        header, tensors = split(data)
        change(header)
        return join(header, tensors)

    return apply


NAME = "encoder0.conv0.weight"
CONTAINERS: list[tuple[str, Callable[[bytes], bytes], str]] = [
    ("empty", lambda data: b"", "empty"),
    ("one byte", lambda data: b"\0", "not an engine file"),
    ("text", lambda data: b"hello, this is no engine", "not an engine file.*unet-fast freeze"),
    ("zip", lambda data: b"PK\3\4" + bytes(100), "zip archive, such as a PyTorch checkpoint"),
    ("keras", lambda data: b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
    ("weights", lambda data: join({"x": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}, b""), "no plan"),
    ("other program", lambda data: join({"__metadata__": {"format": "pt"}}, b""), "another program"),
    ("metadata list", lambda data: join({"__metadata__": []}, b""), "__metadata__ must be an object"),
    ("no document", lambda data: join({"__metadata__": {"unet_fast": 3}}, b""), "must be a string"),
    ("broken document", lambda data: join({"__metadata__": {"unet_fast": "{"}}, b""), "the plan is not valid JSON"),
    ("list document", lambda data: join({"__metadata__": {"unet_fast": "[]"}}, b""), "the document must be an object"),
    ("broken header", lambda data: join(b'{"a":', b""), "the header is not valid JSON at byte"),
    ("not utf-8", lambda data: join(b'{"\xff":1}', b""), "the header is not valid JSON at byte"),
    ("infinite number", lambda data: join(b'{"a":1e999}', b""), "number that no double can hold"),
    ("key twice", lambda data: join(b'{"a":1,"a":2}', b""), "the key 'a' twice"),
    ("deep", lambda data: join(b'{"a":' + b"[" * 100000 + b"]" * 100000 + b"}", b""), "nested deeper"),
    ("many values", lambda data: join(b'{"a":[' + b"0," * 2_000_000 + b"0]}", b""), "more than 1048576 values"),
    ("huge header", lambda data: struct.pack("<Q", 2**63) + data[8:], "its header has 9223372036854775808 bytes"),
    ("long header", lambda data: struct.pack("<Q", len(data)) + data[8:], "cut off within its header"),
    ("cut", lambda data: data[:-1], "data_offsets"),
    ("longer", lambda data: data + b"x", "bytes of data, but its tensors take"),
    ("no tensor", header_change(lambda h: h.pop(NAME)), "begins at byte|is missing"),
    ("offsets", header_change(lambda h: h[NAME].update(data_offsets=[2**62, 2**62 + 288])), "data_offsets"),
    ("backwards", header_change(lambda h: h[NAME].update(data_offsets=h[NAME]["data_offsets"][::-1])), "data_offsets"),
    ("shape", header_change(lambda h: h[NAME].update(shape=[8, 3, 3, 2])), "288 bytes, but its shape .* takes 576"),
    ("overflow", header_change(lambda h: h[NAME].update(shape=[2**62, 2**62])), "larger than any file"),
    (
        "negative",
        header_change(lambda h: h[NAME].update(shape=[-8, -3, 3, 1])),
        r"shape\[0\] must be an integer from 0",
    ),
    ("rank", header_change(lambda h: h[NAME].update(shape=[1] * 9)), "shape has 9 items"),
    ("dtype", header_change(lambda h: h[NAME].update(dtype="F31")), "dtype must be one of"),
    ("integers", header_change(lambda h: h[NAME].update(dtype="I32")), "is I32, expected F32"),
    ("transposed", header_change(lambda h: h[NAME].update(shape=[1, 3, 3, 8])), r"expected \[8, 3, 3, 1\]"),
]


@pytest.mark.parametrize(("change", "message"), [pytest.param(*case[1:], id=case[0]) for case in CONTAINERS])
def test_wrong_containers(good: bytes, change: Callable[[bytes], bytes], message: str) -> None:
    refused(change(good), f"(?s){message}")


def test_a_damaged_file_with_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.unet")
    path.write_bytes(b"no engine")
    with pytest.raises(EngineFileError) as refusal:
        _native.Engine(
            path=os.fsencode(path), data=None, device="cpu", precision="auto", cpu_isa="auto", threads=1,
            refuse_embedded_code=True, keep_warm_ms=0,
        )  # fmt: skip
    assert str(path) in str(refusal.value)


def test_overlapping_tensors(good: bytes) -> None:
    header, data = split(good)
    other = next(n for n, e in header.items() if n not in ("__metadata__", NAME) and e["shape"] == [8])
    begin = header[NAME]["data_offsets"][0]
    header[other]["data_offsets"] = [begin, begin + 32]
    refused(join(header, data), "begins at byte .* of the data, expected")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers(engine_file: Callable[..., Path], value: float) -> None:
    file = engine_files.read(engine_file("plain"))
    tensors = {name: array.copy() for name, array in file.tensors.items()}
    tensors[NAME].flat[7] = value
    refused(engine_files.serialise(file.document, tensors), f"tensor '{NAME}' holds -?(nan|inf) at element 7")


def test_a_large_file_of_another_kind_is_not_read(tmp_path: Path) -> None:
    """There is no memory for this one."""
    path = tmp_path / "other.unet"
    with path.open("wb") as file:
        file.truncate(1 << 42)
    with pytest.raises(EngineFileError, match=r"other\.unet: not an engine file: it does not begin like one"):
        Engine(path)


def test_every_way_to_cut_a_file(good: bytes) -> None:
    lengths = {*range(100), *range(100, len(good), 997), *range(len(good) - 100, len(good))}
    for length in sorted(lengths):
        refused(good[:length], "engine file")


def test_every_flipped_bit_of_some_is_found(good: bytes) -> None:
    """Whether in the plan, in a weight, where no other check could see it, or in the checksum."""
    random = np.random.default_rng(0)
    header_end = 8 + struct.unpack_from("<Q", good)[0]
    places = [*random.integers(8, header_end, 100), *random.integers(header_end, len(good), 100), len(good) - 1]
    for place in places:
        damaged = bytearray(good)
        damaged[place] ^= 1 << random.integers(8)
        refused(bytes(damaged), "engine file")
        with pytest.raises(EngineFileError):
            engine_files.read(bytes(damaged))


def test_a_flipped_weight_is_named_as_damage(good: bytes) -> None:
    header, _ = split(good)
    place = 8 + struct.unpack_from("<Q", good)[0] + header[NAME]["data_offsets"][0]
    damaged = bytearray(good)
    damaged[place] ^= 1  # the last bit of a mantissa
    refused(bytes(damaged), "its bytes do not give its checksum")
    with pytest.raises(EngineFileError, match="do not give its checksum"):
        engine_files.read(bytes(damaged))


def test_checksum_that_is_not_the_last_bytes(good: bytes) -> None:
    header, data = split(good)
    header["~adler32"]["dtype"], header["~adler32"]["shape"] = "F32", [1]
    refused(join(header, data), "checksum must be the last 4 bytes")


def test_file_without_checksum_opens(good: bytes) -> None:
    header, data = split(good)
    del header["~adler32"]
    text = json.dumps(header).encode()
    run_once(open_native(struct.pack("<Q", len(text)) + text + data[:-4]))


@pytest.mark.parametrize("seed", range(4))
def test_random_documents_open_safely_or_not_at_all(good: bytes, seed: int) -> None:
    """Any value of the document is replaced by any other; what opens is run."""
    random = np.random.default_rng(seed)
    header, data = split(good)
    document = json.loads(header["__metadata__"]["unet_fast"])
    odd = [None, True, -1, 0, 1, 2, 3, 4, 7, 64, 65536, 2**31, 2**63, 2**64, 0.5, -1e300, "", "conv", "image",
           "softmax", "none", [], {}, [1, 1], [0, 0, 0, 0], [1, 0, 1], [4, 0, 1]]  # fmt: skip
    opened = 0
    for _ in range(250):
        changed = copy.deepcopy(document)
        place: Any = changed
        while True:
            keys = list(place) if isinstance(place, dict) else range(len(place))
            key = keys[random.integers(len(keys))]
            if not isinstance(place[key], dict | list) or not place[key] or random.random() < 0.1:
                break
            place = place[key]
        place[key] = odd[random.integers(len(odd))]
        header["__metadata__"]["unet_fast"] = json.dumps(changed)
        try:
            engine = open_native(join(header, data))
        except EngineFileError:
            continue
        opened += 1
        run_once(engine)
    assert opened > 0  # a name, an accuracy or a threshold may be anything
