"""Post-training quantisation: a fused graph becomes one whose convolutions read and write uint8.

    result = quantise(fused, calibration_images(images, channels), agreement)

Activations are uint8 with one scale per tensor and zero as zero, which holds whatever a ReLU leaves.  Weights are int8
with one scale per output channel, in units of the op's inputs and output: where an op reads two tensors of different
scales, these are in the weights, so that both add up in the same int32.  What a sum means stands in `docs/design.md`.
Wide 3x3 convolutions are rounded in Winograd's form instead of the direct one.

Ranges of activations come from running the graph on the calibration images; the range of each tensor is cut where the
mean squared error of its values is least.  The mean error that rounding the weights leaves in each output channel is
taken off its bias.  Then the quantised network is compared with the original on the same images, and as long as they
agree too little, the op whose rounding harms most takes the direct form, and when all have it, stays in floating point.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from . import reference
from .arrays import as_image_batch
from .graph import IMAGE, WINOGRAD, Array, Graph, Node, has_winograd_form
from .images import list_images, read_pages, to_channels

#: Least agreement with the float32 network on the calibration images; see `agreement`.
GATE = 0.98
#: So many images, evenly spread, say which ranges tensors have; all of them are compared.
MOST_RANGE_IMAGES = 32
#: Ranges are cut at one of so many fractions of the largest value.
CUTS = 128
#: Levels of an activation and of a weight, each on one side of zero.
LARGEST_BYTE, LARGEST_WEIGHT = 255, 127
#: Bounds that keep sums in int32: those of the bias alone here, those of products in `check_plan` of the runtime.
LARGEST_BIAS = 2.0**29
#: Winograd's form is for ops with so many channels in each input and in the output.  The shipped network, calibrated
#: with 32 images of each set, then agrees with itself in float32 to 0.9825 on those of dsb2018 and 0.9842 on those of
#: bbbc010 (from 64 channels on 0.9858 and 0.9886, without the form 0.9909 and 0.9950), and loses 0.0012 and 0.0003 of
#: pooled IoU on the test images: no more than OpenVINO's int8 by NNCF, calibrated alike, which loses 0.0013 and 0.0018.
#: From 16 channels on it agrees to 0.975 only, and the transforms eat up what narrow layers would save.
WINOGRAD_CHANNELS = 32

#: Of tensors that are read in Winograd's form, where a difference beyond half the range is cut, the steps may be so
#: much larger, as it agrees best.  The shipped network agrees best at 1 (dsb2018/test 0.9876, at 1.5 0.9829, at 2
#: 0.9778), `relunet64` with random weights on noise, which is all differences, at 2 (0.9828, 0.9938, 0.9950; at 3
#: 0.9938).
WIDENINGS = (1.0, 1.5, 2.0)

_BINS = 2048


@dataclass(frozen=True)
class Quantised:
    """The graph and what is worth knowing about it.

    kept  why an op stays in floating point, by name.
    direct  why an op for which Winograd's form would pay is in the direct one, by name.
    agreement  with the float32 network on the calibration images, from 0 to 1.
    images  how many there were.
    """

    graph: Graph
    kept: dict[str, str]
    direct: dict[str, str]
    agreement: float
    images: int

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the engine file."""
        return {
            "images": self.images,
            "agreement": round(self.agreement, 6),
            "gate": GATE,
            "kept": [{"op": name, "why": why} for name, why in self.kept.items()],
            "direct": [{"op": name, "why": why} for name, why in self.direct.items()],
        }


def calibration_images(calibration: Any, channels: int) -> list[Array]:
    """Images (H, W, channels) of a calibration set: a folder, an array (N, H, W[, C]), or a sequence of such arrays.

    Pixels are uint8, uint16 or float32 in [0, 1].  `ValueError` and `TypeError` that name the image where one is
    unfit, where there is none, or where all are constant; `OSError` for a folder that cannot be read.
    """
    if calibration is None:
        raise ValueError(
            'precision "int8" needs calibration=: some dozens of images like those that the network will see'
        )
    if isinstance(calibration, str | PathLike):
        paths = list_images(Path(calibration))
        given = [(str(path), to_channels(page, channels, path)) for path in paths for page in read_pages(path)]
    elif isinstance(calibration, Mapping) or not hasattr(calibration, "__len__"):
        raise TypeError(
            f"calibration must be a folder, an array of images or a sequence of them, got {type(calibration).__name__}"
        )
    else:
        given = [(f"image {index}", image) for index, image in enumerate(calibration)]
    images: list[Array] = []
    for name, image in given:
        try:
            batch, _ = as_image_batch(image, channels)
        except (TypeError, ValueError) as error:
            raise type(error)(f"calibration: {name}: {error}") from None
        if not np.isfinite(batch).all():
            raise ValueError(f"calibration: {name} has NaN or infinite pixels")
        images.extend(batch)
    if not images:
        raise ValueError("calibration holds no images; some dozens like those that the network will see are needed")
    if all(np.ptp(image.astype(np.float64)) == 0 for image in images):
        raise ValueError(f"calibration: each of the {len(images)} images is constant; real images are needed")
    return images


def quantise(fused: Graph, images: Sequence[Array], agreement: Callable[[Graph], float]) -> Quantised:
    """The int8 form of a fused graph, with as many ops as possible in int8, and of these in Winograd's form if it pays.

    images     as `calibration_images` returns them.
    agreement  how well a quantised graph agrees with `fused` on these images, from 0 to 1.

    `ValueError` where no op can be quantised, or where the agreement stays below `GATE`.
    """
    chosen, unfit = candidates(fused)
    if not chosen:
        raise ValueError(
            'precision "int8": no op of this network can be quantised; '
            + "; ".join(f"{name} {why}" for name, why in unfit.items())
        )
    ranges = observe(fused, images)
    wide = winograd_ops(fused, chosen)

    def in_winograd(names: Collection[str], widening: float) -> Graph:
        return rewrite(fused, chosen, ranges, names, widening)

    tried = {widening: in_winograd(wide, widening) for widening in (WIDENINGS if wide else (1.0,))}
    agreements = {widening: agreement(graph) for widening, graph in tried.items()}
    best = max(agreements, key=agreements.__getitem__)
    quantised, reached, direct = _through_the_gate(
        tried[best], agreements[best], wide, 0, "Winograd's form", lambda names: in_winograd(names, best), agreement
    )
    if reached < GATE:
        # By now all are in the direct form.
        quantised, reached, kept = _through_the_gate(
            quantised, reached, chosen, 1, "int8", lambda names: rewrite(fused, names, ranges), agreement
        )
        if reached < GATE:
            raise ValueError(
                f'precision "int8": with every op but one in floating point the masks still agree to less than {GATE}; '
                "calibrate with images like those that the network was trained on, or use another precision"
            )
        unfit |= kept
    direct = {name: why for name, why in direct.items() if name not in unfit}
    return Quantised(quantised, unfit, direct, reached, len(images))


def _through_the_gate(
    graph: Graph,
    reached: float,
    names: Sequence[str],
    least: int,
    form: str,
    build: Callable[[list[str]], Graph],
    agreement: Callable[[Graph], float],
) -> tuple[Graph, float, dict[str, str]]:
    """The graph that has as many of the named ops in a form as the gate lets through, but `least` of them in any case.

    graph, reached  with all of them in the form, and its agreement.
    build           makes the graph that has the ops of these names in the form.

    Returns the graph, its agreement, and why an op is not in the form.  Ops leave it one after the other, those first
    without which alone the agreement is best.
    """
    left, outside = list(names), dict[str, str]()
    first = reached
    if reached < GATE:
        without = {name: agreement(build([one for one in names if one != name])) for name in names}
        for name in sorted(names, key=lambda name: -without[name])[: len(names) - least]:
            outside[name] = (
                f"rounds too coarsely: agreement {first:.4f} with all in {form}, {without[name]:.4f} without"
            )
            left.remove(name)
            graph = build(left)
            reached = agreement(graph)
            if reached >= GATE:
                break
    return graph, reached, outside


# -- what is observed ------------------------------------------------------------------------------------------------


@dataclass
class Range:
    """The values of one tensor that are not negative: a histogram, and the mean of each channel."""

    top: float = 0.0
    counts: Array = field(default_factory=lambda: np.zeros(_BINS))
    sums: Array | float = 0.0
    pixels: int = 0

    def add(self, values: Array) -> None:
        """values (N, H, W, C)."""
        largest = float(values.max())
        if self.top == 0.0:
            self.top = largest
        while largest > self.top:  # twice the width, so two bins become one
            self.top *= 2
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(axis=1), np.zeros(_BINS // 2)])
        if self.top > 0:
            self.counts += np.histogram(values, bins=_BINS, range=(0.0, self.top))[0]
        self.sums = self.sums + values.sum(axis=(0, 1, 2), dtype=np.float64)
        self.pixels += values.size // values.shape[-1]

    @property
    def means(self) -> Array:
        """(C)"""
        return np.asarray(self.sums) / self.pixels

    def scale(self) -> float:
        """One step of uint8, so that the mean squared error of rounding and cutting is least."""
        if self.top == 0.0:
            return 1.0 / LARGEST_BYTE  # the tensor is zero
        values = (np.arange(_BINS) + 0.5) * (self.top / _BINS)
        # Zeros are exact at any scale; those in the first bin would count as its middle.
        counts = self.counts.copy()
        counts[0] = 0
        steps = self.top / LARGEST_BYTE * np.arange(1, CUTS + 1) / CUTS
        errors = []
        for step in steps:
            cut = values > step * (LARGEST_BYTE + 0.5)
            # Rounding errors spread evenly over a step; a bin is too wide to tell where in it values lie.
            lost = np.where(cut, (values - step * LARGEST_BYTE) ** 2, step**2 / 12)
            errors.append(float(counts @ lost))
        return float(steps[int(np.argmin(errors))])


def observe(fused: Graph, images: Sequence[Array]) -> dict[str, Range]:
    """Ranges of every tensor of the fused graph on the images."""
    ranges: dict[str, Range] = {}
    chosen = np.unique(np.linspace(0, len(images) - 1, min(len(images), MOST_RANGE_IMAGES)).astype(int))
    for index in chosen:
        values = reference.tensors(fused, window(fused, images[index]), dtype=np.float32)
        for name, array in values.items():
            if name != IMAGE:
                ranges.setdefault(name, Range()).add(np.maximum(array, 0))
    return ranges


def window(graph: Graph, image: Array) -> Array:
    """The middle of an image as the reference takes it: (1, h, w, C) in [0, 1], of the trained size if it is so large.

    A smaller image is mirrored up to the next legal size.
    """
    rule = graph.size_rule
    most = rule.at_least(graph.tile)
    pixels = reference.to_unit(image)
    for axis in (0, 1):
        have = pixels.shape[axis]
        if have >= most:
            first = (have - most) // 2
            pixels = np.take(pixels, range(first, first + most), axis)
        else:
            missing = rule.at_least(have) - have
            width = [(0, 0)] * 3
            width[axis] = (missing // 2, missing - missing // 2)
            pixels = np.pad(pixels, width, mode="reflect" if have > 1 else "edge")
    return pixels[None]


# -- which ops -------------------------------------------------------------------------------------------------------


def candidates(fused: Graph) -> tuple[list[str], dict[str, str]]:
    """The ops that have an int8 form, and why the other convolutions have none.  (The stem reads floats anyway.)"""
    kinds = ("conv", "up_conv", "concat_conv", "conv_transpose", "head")
    reasons = {node.name: _unfit(fused, node) for node in fused.nodes if node.kind in kinds}
    fit = [name for name, why in reasons.items() if why is None]
    return fit, {name: why for name, why in reasons.items() if why is not None}


def _unfit(graph: Graph, node: Node) -> str | None:
    """Why the node has no int8 form; None where it has one."""
    attributes = node.attributes
    if node.kind == "concat_conv" and attributes["upsample"] != "none":
        return f"interpolates what it reads ({attributes['upsample']})"
    if node.kind == "conv_transpose" and not (
        attributes["kernel"] == attributes["stride"] == [2, 2] and not any(attributes["padding"])
    ):
        return "is a transposed convolution of other than 2 x 2 pixels"
    if node.kind == "head" and attributes["activation"] == "leaky_relu":
        return "has the activation leaky_relu"
    if node.kind != "head" and attributes["activation"] != "relu":
        return "writes values below zero"
    negative = [name for name in node.inputs if not _never_negative(graph, name)]
    return f"reads values below zero ({', '.join(negative)})" if negative else None


def _never_negative(graph: Graph, tensor: str) -> bool:
    writer = graph.writer(tensor)
    if writer is None:
        return False
    if writer.kind in ("pool", "upsample", "pad", "concat"):
        return all(_never_negative(graph, name) for name in writer.inputs)
    return writer.attributes.get("activation") in ("relu", "sigmoid", "softmax")


def winograd_ops(fused: Graph, chosen: Iterable[str]) -> list[str]:
    """Those of the chosen ops that have Winograd's form and gain by it."""

    def pays(node: Node) -> bool:
        return all(fused.shapes[name].channels >= WINOGRAD_CHANNELS for name in (*node.inputs, *node.outputs))

    names = set(chosen)
    return [node.name for node in fused.nodes if node.name in names and has_winograd_form(node) and pays(node)]


# -- the rewrite -----------------------------------------------------------------------------------------------------


def rewrite(
    fused: Graph,
    chosen: Iterable[str],
    ranges: Mapping[str, Range],
    winograd: Collection[str] = (),
    widening: float = 1.0,
) -> Graph:
    """The graph with the ops of these names in int8, and conversions where they meet those in floating point.

    winograd  those of the chosen ops that take Winograd's form.
    widening  the steps of the tensors that these read are so much larger than ranges say.
    """
    names = set(chosen)
    nodes: list[Node] = []
    in_bytes: dict[str, tuple[str, float]] = {}  # tensors of `fused` as uint8: name there, and what one step is worth
    in_floats: dict[str, str] = {}

    def scale(*names: str) -> float:
        """Of a tensor and what is pooled from it."""
        in_winograd = any(reader.name in winograd for name in names for reader in fused.readers(name))
        return float(np.float32(ranges[names[0]].scale() * (widening if in_winograd else 1.0)))

    def as_bytes(name: str) -> str:
        if name not in in_bytes:
            in_bytes[name] = f"{name}.uint8", scale(name)
            attributes = {"output_scale": in_bytes[name][1]}
            nodes.append(Node("quantise", f"{name}.uint8", (name,), (f"{name}.uint8",), attributes))
        return in_bytes[name][0]

    def as_floats(name: str) -> str:
        if name not in in_floats:
            in_floats[name] = f"{name}.float"
            nodes.append(Node("dequantise", in_floats[name], (name,), (in_floats[name],)))
        return in_floats[name]

    for node in fused.nodes:
        attributes, tensors = dict(node.attributes), node.tensors
        if node.name in names:
            inputs = tuple(as_bytes(name) for name in node.inputs)
            steps = [in_bytes[name][1] for name in node.inputs]
            attributes["arithmetic"] = WINOGRAD if node.name in winograd else "int8"
            means = [ranges[name].means for name in node.inputs]
            tensors = _integers(node, steps, means, winograd=node.name in winograd)
        else:
            inputs = tuple(name if name == IMAGE else as_floats(name) for name in node.inputs)
        feeds = node.kind == "stem" and attributes["activation"] == "relu"
        feeds = feeds and any(reader.name in names for name in node.outputs for reader in fused.readers(name))
        if node.outputs and (node.name in names or feeds):
            attributes["output_scale"] = scale(*node.outputs)
            # The pooled output is some of the same bytes.
            in_bytes |= {name: (name, attributes["output_scale"]) for name in node.outputs}
        else:
            in_floats |= {name: name for name in node.outputs}
        nodes.append(replace(node, inputs=inputs, attributes=attributes, tensors=tensors))
    return fused.with_nodes(nodes)


#: Tensors of weights by the input that they belong to, of the ops that have several inputs.
_WEIGHTS = {"up_conv": ("weight_up", "weight_skip"), "concat_conv": ("weight_a", "weight_b")}


#: Of a 3x3 convolution, and of the 2x2 one of each phase of `weight_up`: taps -> positions; see `at_positions`.
_POSITIONS = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_LOW_POSITIONS = np.array([[[1, 0], [1, 1], [0, 1]], [[-1, 0], [1, 1], [0, 1]]])


def at_positions(name: str, weight: Array) -> Array:
    """The weights of Winograd's form that stand for those of a 3x3 convolution, or of an `up_conv`'s `weight_up`.

    Along an axis let p, q, r, s be inputs and g the taps.  Two outputs then take four products instead of six (Lavin
    and Gray 2015, "Fast Algorithms for Convolutional Neural Networks", F(2x2, 3x3); q + r is halved to fit a byte):

        m0 = g0 (p - r)    m1 = (g0 + g1 + g2)/2 (q + r)/2    m2 = (g0 - g1 + g2)/2 (r - q)    m3 = g2 (q - s)
        g0 p + g1 q + g2 r = m0 + 2 m1 + m2                   g0 q + g1 r + g2 s = 2 m1 - m2 - m3

    With two taps, as a phase of `weight_up` has them, three instead of four:

        m0 = g0 (p - q)    m1 = (g0 + g1) q    m2 = g1 (r - q)
        g0 p + g1 q = m0 + m1                  g0 q + g1 r = m1 + m2

    where phase 1 has both signs of m0 turned, so that its windows, which begin a row later, share a difference with
    those of phase 0.  (O, 3, 3, C) -> (O, 4, 4, C); (2, 2, O, 2, 2, C) -> (2, 2, O, 3, 3, C).
    """
    if name == "weight_up":
        return np.einsum("yia,xjb,yxoabc->yxoijc", _LOW_POSITIONS, _LOW_POSITIONS, weight, optimize=True)
    return np.einsum("ia,jb,oabc->oijc", _POSITIONS, _POSITIONS, weight, optimize=True)


def _integers(node: Node, scales: Sequence[float], means: Sequence[Array], winograd: bool = False) -> dict[str, Array]:
    """The tensors of an int8 op: weights in int8, bias in whole numbers, `scale` (O): what one step of a sum is worth.

    scales, means: of each input, one step of its uint8 and the mean (C) of its values.
    """
    names = _WEIGHTS.get(node.kind, ("weight",))
    stored = {name: at_positions(name, node.tensors[name]) if winograd else node.tensors[name] for name in names}
    # Outputs first, per step of the input; weight_up (2, 2, O, 2, 2, C) has four phases.
    weights = [
        (np.moveaxis(stored[name], 2, 0) if name == "weight_up" else stored[name]) * scale
        for name, scale in zip(names, scales, strict=True)
    ]
    bias = node.tensors["bias"]
    largest = np.max([np.abs(weight).reshape(len(weight), -1).max(axis=1) for weight in weights], axis=0)
    biases = np.abs(bias).reshape(-1, bias.shape[-1]).max(axis=0)
    step = np.maximum(largest / LARGEST_WEIGHT, biases / LARGEST_BIAS)
    step = np.where(step > 0, step, 1.0).astype(np.float32)
    tensors: dict[str, Array] = {"scale": step}
    for name, weight, scale, mean in zip(names, weights, scales, means, strict=True):
        unit = step.astype(np.float64).reshape(-1, *[1] * (weight.ndim - 1))
        rounded = np.clip(np.rint(weight / unit), -LARGEST_WEIGHT, LARGEST_WEIGHT)
        # What rounding adds on average: its errors, times the mean input, over all taps (of one phase of four).
        error = (rounded * unit - weight) @ (mean / scale)
        if winograd:  # differences have no mean, which leaves the position of q + r, taken 2 x 2 times, or that of q
            error = error[..., 1, 1] * (1 if name == "weight_up" else 4)
        bias = bias - error.reshape(len(error), -1).sum(axis=1) / (4 if name == "weight_up" else 1)
        integers = rounded.astype(np.int8)
        tensors[name] = np.ascontiguousarray(np.moveaxis(integers, 0, 2) if name == "weight_up" else integers)
    tensors["bias"] = np.rint(bias / step.astype(np.float64)).astype(np.float32)
    for name in ("head_weight", "head_bias"):
        if name in node.tensors:
            tensors[name] = node.tensors[name]
    return tensors


# -- how well it agrees ----------------------------------------------------------------------------------------------


def agreement(results: Sequence[Array], truths: Sequence[Array], output: str) -> float:
    """How well results agree with those of the float32 network, 1 for no difference.

    Of masks, uint8 (H, W): the intersection over union of each class, all images together, averaged over the classes
    that occur; for "sigmoid" of the foreground alone.  Else of values, float32: 1 - ||result - truth|| / ||truth||.
    """
    found, wanted = (np.concatenate([array.ravel() for array in arrays]) for arrays in (results, truths))
    if found.dtype != np.uint8:
        lost = float(np.linalg.norm(found.astype(np.float64) - wanted))
        return max(0.0, 1.0 - lost / max(float(np.linalg.norm(wanted.astype(np.float64))), 1e-30))
    classes = [255] if output == "sigmoid" else np.union1d(found, wanted)
    shares = []
    for index in classes:
        union = np.count_nonzero((found == index) | (wanted == index))
        if union:
            shares.append(np.count_nonzero((found == index) & (wanted == index)) / union)
    return float(np.mean(shares)) if shares else 1.0
