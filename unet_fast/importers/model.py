"""What every importer gives, and the few rules that they share."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from ..graph import LINES, Array, Graph, Node, Normalisation

Result: TypeAlias = Literal["auto", "sigmoid", "softmax", "identity"]
RESULTS: tuple[Result, ...] = ("auto", "sigmoid", "softmax", "identity")

#: A network that first divides its input by this much or more was given pixels of 0..255.
_LEAST_BYTE_DIVISOR = 127.0


class ModelFileError(ValueError):
    """A file that is not what it claims to be, or that holds what the engine cannot express."""


@dataclass(frozen=True)
class Options:
    """What a file may not say about itself.

    normalisation  from pixels in [0, 1] to what the network was trained on; None: the file's own where it has one,
                   else the pixels themselves (0..255 for a network that begins by dividing them by 255).
    result         what the network's last values are; see `finish`.
    raw            for the result "auto": values without sigmoid or softmax are "logits", or the "result" itself.
    l2             divide the "columns" or the "rows" of each tile by their Euclidean norms first, as
                   `keras.utils.normalize` does along axis 1 of a stack (columns) or of a single image (rows).
    output         name of the output to take, of a network with several.
    tile           side of the images that the network was trained on; None: the file's own, else 256.
    skip_lambda    Keras: take `Lambda` layers, whose code is never run, for steps that change nothing.
    """

    normalisation: Normalisation | None = None
    result: Result = "auto"
    raw: Literal["logits", "result"] = "logits"
    l2: Literal["columns", "rows"] | None = None
    output: str | None = None
    tile: int | None = None
    skip_lambda: bool = False

    def __post_init__(self) -> None:
        if self.result not in RESULTS:
            raise ValueError(f"result must be one of {', '.join(RESULTS)}, got {self.result!r}")
        if self.l2 not in (None, *LINES):
            raise ValueError(f"l2 must be {' or '.join(LINES)}, got {self.l2!r}")
        if self.tile is not None and not 1 <= self.tile <= 16384:
            raise ValueError(f"tile must be from 1 to 16384, got {self.tile!r}")


@dataclass(frozen=True)
class PublishedPair:
    """A picture and what its publisher says that the network makes of it.

    pixels   (H, W, C) float32 as `Engine.probability` takes them.
    result   (h, w, K) float32: probability, or value of a regression.
    origin   where it is from, for people.
    """

    pixels: Array
    result: Array
    origin: str


@dataclass(frozen=True)
class Judge:
    """The framework that a file came from, run on the file itself.

    run    (H, W, C) pixels in [0, 1] -> (h, w, K) result.
    name   of the framework with its version.
    size   (height, width) of the one size that the file accepts; None: any legal one.
    """

    run: Callable[[Array], Array]
    name: str
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class ImportedModel:
    """A network read from somebody else's file.

    graph        ready for `unet_fast.freeze`.
    found        what the file turned out to be, one line.
    remarks      what a person should know about how it was read.
    class_names, palette, threshold
                 as in `unet_fast.freeze`.
    pairs        test images that came with it.
    judge        its own framework, where that can run it without executing anything of the file.
    """

    graph: Graph
    found: str
    remarks: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()
    threshold: float = 0.5
    pairs: tuple[PublishedPair, ...] = field(default=(), repr=False)
    judge: Judge | None = None


class Finished(NamedTuple):
    """A graph with its output; `given` is what turns pixels into the file's own input."""

    graph: Graph
    given: Normalisation
    remarks: tuple[str, ...]


def needs(module: str, purpose: str, install: str = "unet_fast[import]") -> ModuleType:
    """The optional `module`; `ModuleNotFoundError` says what it is for and how to install it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{purpose} needs {module.partition('.')[0]} ({error}); install it with: pip install '{install}'"
        ) from None


def begin(graph: Graph, options: Options) -> str:
    """The image as the network's input, the first tensor of `graph`."""
    image = graph.normalise()
    return image if options.l2 is None else graph.l2_normalise("lines_of_norm_1", image, options.l2)


def finish(graph: Graph, last: str, options: Options) -> Finished:
    """Ends `graph` at its tensor `last` and gives it the normalisation.

    With the result "auto", a sigmoid or softmax at the end of the network is its result; raw values are the logits of
    a sigmoid (one channel) or softmax (more), as segmentation has it.  Any other result is applied to `last`.
    """
    remarks: list[str] = []
    result: str = options.result
    channels, writer = graph.shapes[last].channels, graph.writer(last)
    ending = writer.attributes["activation"] if writer is not None and writer.kind == "activation" else "none"
    if writer is not None and ending in ("sigmoid", "softmax") and result in ("auto", ending):
        result, last = ending, writer.inputs[0]
    elif result == "auto" and (ending != "none" or options.raw == "result"):
        result = "identity"
        remarks.append("it ends in no sigmoid or softmax: read as a regression, which has values and no mask")
    elif result == "auto":
        result = "sigmoid" if channels == 1 else "softmax"
        remarks.append(f'it ends in raw values: read as the logits of a {result}; of a regression say "identity"')
    taken = {node.name for node in graph.nodes}
    graph.finish(last, result, next(name for name in ("output", "result", "the result") if name not in taken))
    if result == "sigmoid" and channels > 1:
        remarks.append(f"{channels} sigmoids side by side: a probability of each, but no mask")
    scaling = _input_scaling(graph)
    given = options.normalisation
    if given is None:
        white = 1.0
        if scaling is not None and scaling.scale.max() * _LEAST_BYTE_DIVISOR <= 1 + 1e-6:
            white = 255.0
            remarks.append("it begins by scaling pixels down: read as made for pixels of 0..255")
        given = Normalisation("fixed", std=(1 / white,))
    graph.normalisation = given
    try:
        given.to_dict(graph.channels)
    except ValueError as error:
        raise ModelFileError(f"{error} of mean and std, the image has {graph.channels} channels") from None
    if scaling is not None and given.kind == "fixed":
        graph = _folded(graph, scaling)
    return Finished(graph, given, tuple(remarks))


class _Scaling(NamedTuple):
    """x * scale + shift for each channel, by the affine `nodes` at the head of a network."""

    nodes: list[Node]
    scale: Array
    shift: Array


def _input_scaling(graph: Graph) -> _Scaling | None:
    """The linear scaling that a network begins with, if nothing else reads what it scales."""
    nodes: list[Node] = []
    scale, shift = np.ones(graph.channels), np.zeros(graph.channels)
    tensor = graph.nodes[0].outputs[0]
    while len(readers := graph.readers(tensor)) == 1 and readers[0].kind == "affine":
        nodes.append(readers[0])
        factor = readers[0].tensors["scale"]
        scale, shift = scale * factor, shift * factor + readers[0].tensors["shift"]
        tensor = readers[0].outputs[0]
    return _Scaling(nodes, scale, shift) if nodes and scale.min() > 0 else None


def _folded(graph: Graph, scaling: _Scaling) -> Graph:
    """The same network with its scaling as part of the normalisation: zero padding comes behind both.

    ((v - mean) / std) * scale + shift = (v - (mean - shift * std / scale)) / (std / scale).
    """
    values = graph.normalisation.to_dict(graph.channels)
    std = np.array(values["std"]) / scaling.scale
    mean = np.array(values["mean"]) - scaling.shift * std
    rule = Normalisation("fixed", tuple(mean.tolist()), tuple(std.tolist()))
    folded = Graph(graph.channels, rule, tile=graph.tile)
    folded.output = graph.output
    folded.normalise(scaling.nodes[-1].outputs[0])
    for node in graph.nodes[1:]:
        if all(node is not gone for gone in scaling.nodes):
            folded.append(node)
    return folded
