"""The engine file: a safetensors file whose metadata holds one JSON document.  The format: `docs/design.md`.

Little-endian.  The same document and tensors give the same bytes.
"""

from __future__ import annotations

import io
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import safetensors
import safetensors.numpy

from .errors import EngineFileError
from .graph import Array, Graph, GraphError, Node, Normalisation
from .images import write_beside

FORMAT_VERSION = 1
METADATA_KEY = "unet_fast"
#: The last tensor, 4 bytes: Adler-32 of every byte before it.  Byte tensors stand last, by name, and "~" sorts last.
CHECKSUM = "~adler32"
#: Longest safetensors header that is read, as in the safetensors library.
LARGEST_HEADER_BYTES = 100_000_000

Source: TypeAlias = str | os.PathLike[str] | bytes


@dataclass(frozen=True)
class EngineFile:
    """What an engine file holds.

    document  the JSON document.
    tensors   every tensor by its full name, "<op>.<tensor>", "golden.0.image" and so on.
    """

    document: dict[str, Any]
    tensors: dict[str, Array]

    @property
    def graph(self) -> Graph:
        """The fused graph, every op checked against its inputs and weights; `EngineFileError` where they disagree."""
        with refusing_malformed():
            source = self.document["input"]
            graph = Graph(
                source["channels"], Normalisation.from_dict(source["normalisation"]), tile=self.document["tile"]
            )
            graph.output = self.document["output"]["kind"]
            for values in self.document["ops"]:
                attributes = dict(values)
                kind, name = attributes.pop("op"), attributes.pop("name")
                inputs, outputs = tuple(attributes.pop("inputs")), tuple(attributes.pop("outputs"))
                prefix = f"{name}."
                tensors = {
                    key.removeprefix(prefix): array
                    for key, array in self.tensors.items()
                    if key.startswith(prefix) and "." not in key.removeprefix(prefix)
                }
                graph.append(Node(kind, name, inputs, outputs, attributes, tensors))
        return graph

    @property
    def golden(self) -> list[tuple[Array, Array]]:
        """Pairs of image (H, W, C) uint8 and probability (h, w, K) float32."""
        with refusing_malformed():
            pairs = self.document["golden"]
            return [(self.tensors[pair["image"]], self.tensors[pair["probability"]]) for pair in pairs]


@contextmanager
def refusing_malformed() -> Iterator[None]:
    """Inside, a document that lacks something or holds another type than it should is an `EngineFileError`."""
    try:
        yield
    except GraphError as error:
        raise EngineFileError(f"engine file: {error}") from None
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise EngineFileError(f"engine file: malformed document: {error!r}") from None


def op_document(node: Node) -> dict[str, Any]:
    """A node as an entry of the document's `ops`."""
    return {
        "op": node.kind,
        "name": node.name,
        "inputs": list(node.inputs),
        "outputs": list(node.outputs),
        **node.attributes,
    }


def serialise(document: Mapping[str, Any], tensors: Mapping[str, Array]) -> bytes:
    """The bytes of an engine file.  `ValueError` for NaN or infinity in the document."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    # The library orders tensors by element size and name, so only the order of several metadata entries would vary.
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    arrays[CHECKSUM] = np.zeros(4, np.uint8)
    data = safetensors.numpy.save(arrays, metadata={METADATA_KEY: text})[:-4]
    return data + checksum(data)


def checksum(data: bytes) -> bytes:
    """Adler-32 (RFC 1950) as 4 bytes, little-endian."""
    return zlib.adler32(data).to_bytes(4, "little")


def write(path: str | os.PathLike[str], document: Mapping[str, Any], tensors: Mapping[str, Array]) -> Path:
    """Writes an engine file whole or not at all: `OSError` leaves no trace, and an older `path` as it was.

    Folders that are missing are made.
    """
    path = Path(path)
    data = serialise(document, tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_beside(path) as temporary:
        temporary.write_bytes(data)
    return path


def read(source: Source) -> EngineFile:
    """An engine file from its path or its bytes.

    `OSError` where it cannot be read, `EngineFileError` where it is not an engine file, is damaged or too new.
    """
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    document = read_document(data)
    try:
        tensors = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, OverflowError) as error:
        raise EngineFileError(f"engine file is damaged: {error}") from None
    if tensors.pop(CHECKSUM, None) is not None and checksum(data[:-4]) != data[-4:]:
        raise EngineFileError("engine file is damaged: its bytes do not give its checksum; copy or freeze it again")
    return EngineFile(document, tensors)


def read_document(source: Source) -> dict[str, Any]:
    """The JSON document alone, without reading the weights.  Errors as in `read`."""
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= length <= min(LARGEST_HEADER_BYTES, size - 8):
            raise EngineFileError(f"not an engine file, or cut short: a header of {length} bytes in a file of {size}")
        header = file.read(length)
    try:
        document = json.loads(json.loads(header)["__metadata__"][METADATA_KEY])
    except (KeyError, TypeError):
        raise EngineFileError(
            f'a safetensors file without the metadata "{METADATA_KEY}"; unet_fast.freeze makes an engine file of it'
        ) from None
    except (ValueError, RecursionError) as error:
        raise EngineFileError(f"not an engine file: {error}") from None
    if not isinstance(document, dict):
        raise EngineFileError(f"the document must be a JSON object, got {type(document).__name__}")
    version = document.get("format_version")
    if version != FORMAT_VERSION:
        raise EngineFileError(
            f"format version {version!r}, this package reads version {FORMAT_VERSION}; "
            "install a newer unet_fast or freeze the network again"
        )
    return document
