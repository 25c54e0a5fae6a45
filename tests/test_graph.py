"""The graph and its NumPy reference, judged by PyTorch in float64; sizes, margins and halos."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.networks import NAMES, RONNEBERGER, SPECS, graph_of, judge, nuclei_graph, random_graph, random_weights
from train.model import UNet, output_size
from unet_fast import reference
from unet_fast.freeze import relative_error
from unet_fast.graph import Graph, GraphError, Normalisation, canonical, canonical_transposed, from_spec
from unet_fast.sizes import Size, legal_sizes
from unet_fast.spec import UNetSpec
from unet_fast.tiling import exact_halo

#: Both sides compute in float64, in another order; a wrong tap or border would show as 1e-3 or more.
TOLERANCE = 1e-12


def pixels_for(graph: Graph, seed: int, height: int, width: int, count: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).random((count, height, width, graph.channels))


def network_logits(spec: UNetSpec, weights: dict[str, np.ndarray], pixels: np.ndarray) -> np.ndarray:
    """What `train.model.UNet` makes of pixels in [0, 1], in float64."""
    model = UNet(spec).double().eval()
    model.load_state_dict({name: torch.from_numpy(value).double() for name, value in weights.items()}, strict=False)
    rule = Normalisation(spec.normalisation, spec.mean, spec.std)
    x = reference.normalised(pixels, rule).transpose(0, 3, 1, 2)
    with torch.no_grad():
        return model(torch.from_numpy(np.ascontiguousarray(x))).numpy().transpose(0, 2, 3, 1)


@pytest.mark.parametrize("name", SPECS)
def test_the_graph_of_a_spec_is_the_network_of_train(name: str) -> None:
    spec, weights = SPECS[name], random_weights(SPECS[name], seed=1)
    graph = from_spec(spec, weights)
    rule = graph.size_rule
    for height, width in (
        (rule.minimum, rule.minimum),
        (rule.minimum + rule.multiple, rule.minimum + 2 * rule.multiple),
    ):
        pixels = pixels_for(graph, 2, height, width, count=2)
        expected = network_logits(spec, weights, pixels)
        assert relative_error(reference.logits(graph, pixels), expected) <= TOLERANCE
        assert expected.shape[1:3] == (height - 2 * graph.margin, width - 2 * graph.margin)


@pytest.mark.parametrize("name", SPECS)
def test_weight_names_are_those_of_the_state_dict(name: str) -> None:
    spec = SPECS[name]
    state = {key: tuple(value.shape) for key, value in UNet(spec).state_dict().items() if value.ndim}
    assert {key: value.shape for key, value in random_weights(spec).items()} == state


@pytest.mark.parametrize("name", NAMES)
def test_every_node_equals_pytorch(name: str) -> None:
    graph = graph_of(name, seed=3)
    side = graph.size_rule.at_least(16)
    pixels = pixels_for(graph, 4, side, side + graph.size_rule.multiple, count=2)
    assert relative_error(reference.probability(graph, pixels), judge(graph, pixels)) <= TOLERANCE


@pytest.mark.parametrize("seed", range(20))
def test_random_graphs_equal_pytorch(seed: int) -> None:
    graph = random_graph(seed)
    side = graph.size_rule.minimum
    pixels = pixels_for(graph, seed, side, 2 * side)
    assert relative_error(reference.logits(graph, pixels), judge(graph, pixels, logits=True)) <= TOLERANCE


def test_ronneberger_572_gives_388() -> None:
    graph = from_spec(RONNEBERGER, random_weights(RONNEBERGER))
    assert graph.size_rule == (16, 12, 188)
    assert graph.margin == 92
    assert [graph.result.height.at(572), graph.result.width.at(572)] == [388, 388]
    pixels = pixels_for(graph, 5, 188, 204)
    expected = network_logits(RONNEBERGER, random_weights(RONNEBERGER), pixels)
    assert relative_error(reference.logits(graph, pixels), expected) <= TOLERANCE


def test_the_published_nuclei_network(shared_data) -> None:
    folder = shared_data / "reference_unet_nuclei"
    graph = nuclei_graph(folder, Normalisation("fixed"))  # these inputs are already standardised
    path = min((folder / "case256").glob("*.input.npy"))  # one is enough for the slow reference
    pixels = np.load(path).transpose(0, 2, 3, 1)
    expected = np.load(str(path).replace("input", "logits")).transpose(0, 2, 3, 1)
    assert np.abs(reference.logits(graph, pixels, dtype=np.float32) - expected).max() <= 1e-4


def test_the_published_nuclei_test_pair(shared_data) -> None:
    folder = shared_data / "reference_unet_nuclei"
    pixels = np.load(folder / "test_input.npy").transpose(0, 2, 3, 1)
    expected = np.load(folder / "test_output.npy").transpose(0, 2, 3, 1)
    result = reference.probability(nuclei_graph(folder), pixels, dtype=np.float32)
    assert np.abs(result - expected).max() <= 1e-4


# -- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPECS)
def test_legal_sizes_are_those_that_train_accepts(name: str) -> None:
    spec = SPECS[name]
    rule = graph_of(name).size_rule
    for side in range(1, 2 * rule.minimum + 2 * rule.multiple):
        try:
            output_size(spec, side)
            accepted = True
        except ValueError:
            accepted = False
        assert rule.allows(side) == accepted, side


sizes = st.builds(
    lambda divide, add, multiply, times: Size().plus(add).over(divide).times(multiply).plus(times),
    st.integers(1, 12),
    st.integers(-30, 30),
    st.integers(1, 6),
    st.integers(-20, 20),
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(sizes, min_size=1, max_size=4))
def test_legal_sizes_by_trying_all(formulas: list[Size]) -> None:
    sides = np.arange(1, 30000)
    whole = np.ones(len(sides), bool)
    for size in formulas:
        values = sides * size.multiply + size.add
        whole &= (values % size.divide == 0) & (values >= size.divide)
    found = list(sides[whole])
    if not found:
        with pytest.raises(ValueError, match=r"no image size"):
            legal_sizes(formulas)
        return
    rule = legal_sizes(formulas)
    assert rule.minimum == found[0]
    assert found == list(range(rule.minimum, 30000, rule.multiple))
    assert rule.at_least(0) == rule.minimum
    assert rule.at_least(rule.minimum + 1) == rule.minimum + rule.multiple


def test_sizes_are_exact_or_refused() -> None:
    half = Size().plus(-4).over(2)
    assert half.at(14) == 5
    assert str(half) == "(n - 4)/2"
    with pytest.raises(ValueError, match="not a whole number for n = 15"):
        half.at(15)
    assert half.times(2).minus(Size()) == -4
    assert half.minus(Size()) is None


# -- halos -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "halo"), [(2, 24), (3, 48), (4, 96), (5, 192)])
def test_halo_of_the_presets_form(depth: int, halo: int) -> None:
    spec = UNetSpec(base_width=8, depth=depth)
    assert exact_halo(from_spec(spec, random_weights(spec))) == halo


HALO_NAMES = (
    "plain",
    "one_conv",
    "nearest",
    "nearest_conv_linear",
    "bilinear",
    "valid",
    "valid_one_conv",
    "valid_bilinear",
    "odd",
)


@pytest.mark.parametrize("name", HALO_NAMES)
def test_a_tile_with_its_halo_equals_the_whole_image(name: str) -> None:
    """And with one step less of halo it does not: the halo is as small as it can be."""
    graph = graph_of(name, seed=6)
    rule, halo, margin = graph.size_rule, exact_halo(graph), graph.margin
    assert halo is not None
    origin = 2 * rule.multiple
    side = rule.at_least(2 * halo + 2 * rule.multiple)
    pixels = pixels_for(graph, 7, rule.at_least(origin + side), rule.at_least(origin + side + rule.multiple))
    whole = reference.logits(graph, pixels)
    tile = reference.logits(graph, pixels[:, origin : origin + side, origin : origin + side])

    def difference(context: int) -> float:
        """Largest difference on the pixels of the tile that have so much of it around them."""
        inside = slice(max(context - margin, 0), min(side - context, side - margin) - margin)
        seen = slice(origin + inside.start, origin + inside.stop)
        return float(np.abs(tile[:, inside, inside] - whole[:, seen, seen]).max())

    assert difference(halo) <= 1e-12
    if margin == 0:  # without padding whatever comes out of a tile is right
        assert difference(halo - rule.multiple) > 1e-9


@pytest.mark.parametrize("name", ["bilinear_corners", "valid_corners", "lines"])
def test_what_depends_on_the_size_cannot_be_tiled_exactly(name: str) -> None:
    assert exact_halo(graph_of(name)) is None


# -- what is refused -------------------------------------------------------------------------------------------------


def test_missing_left_over_and_misshapen_weights_are_named() -> None:
    spec = SPECS["plain"]
    weights = random_weights(spec)
    with pytest.raises(ValueError, match=r"lack 'encoder1.conv0.bias' \(16,\)"):
        from_spec(spec, {name: value for name, value in weights.items() if name != "encoder1.conv0.bias"})
    with pytest.raises(ValueError, match=r"no place for: extra.weight"):
        from_spec(spec, {**weights, "extra.weight": np.zeros(3)})
    with pytest.raises(ValueError, match=r"'head.weight' must have the shape \(1, 8, 1, 1\), got \(1, 9, 1, 1\)"):
        from_spec(spec, {**weights, "head.weight": np.zeros((1, 9, 1, 1))})
    with pytest.raises(ValueError, match=r"no place for: a0, a1, a2, a3, a4 and 2 more"):
        from_spec(spec, {**weights, **{f"a{index}": np.zeros(1) for index in range(7)}})


def build(kind: str) -> None:
    """Builds a network with one thing wrong."""
    graph = Graph(1)
    x = graph.normalise()
    x = graph.conv("first", x, np.ones((4, 3, 3, 1)), padding=(1, 1, 1, 1))
    if kind == "channels":
        graph.conv("second", x, np.ones((4, 3, 3, 8)))
    elif kind == "kernel":
        graph.conv("large", x, np.ones((4, 5, 5, 4)))
    elif kind == "padding":
        graph.conv("padded", x, np.ones((4, 1, 1, 4)), padding=(1, 1, 1, 1))
    elif kind == "bias":
        graph.conv("biased", x, np.ones((4, 1, 1, 4)), np.ones(5))
    elif kind == "unknown":
        graph.pool("pool", "nowhere")
    elif kind == "twice":
        graph.activation("first", x, "relu")
    elif kind == "concat":
        graph.concat("joined", x, graph.pool("pool", x))
    elif kind == "add":
        graph.add("sum", x, graph.conv("fewer", x, np.ones((2, 1, 1, 4))))
    elif kind == "activation":
        graph.activation("swish", x, "swish")
    elif kind == "pool":
        graph.pool("pool", x, "median")
    elif kind == "scale":
        graph.upsample("up", x, "nearest", 5)
    elif kind == "variance":
        graph.batch_norm("norm", x, *np.ones((3, 4)), np.array([1, 1, -1, 1]))
    elif kind == "output":
        graph.finish(graph.pool("pool", x), "sigmoid")
    elif kind == "kind":
        graph.finish(x, "hardmax")
    else:
        graph.finish(x, "sigmoid")
        graph.activation("late", x, "relu")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("channels", r"second \(conv\): weight must have the shape \(any, 3, 3, 4\), got \(4, 3, 3, 8\)"),
        ("kernel", r"large \(conv\): kernel must be 2 whole numbers from 1 to 4"),
        ("padding", r"padded \(conv\): padding must be smaller than the kernel"),
        ("bias", r"biased \(conv\): bias must have the shape \(4\)"),
        ("unknown", r"pool: reads 'nowhere'"),
        ("twice", r"first: another node has this name"),
        ("concat", r"joined \(concat\): inputs differ in height or width"),
        ("add", r"sum \(add\): inputs differ in shape"),
        ("activation", r"swish \(activation\): activation must be one of relu"),
        ("pool", r"pool \(pool\): mode must be max or average"),
        ("scale", r"up \(upsample\): scale must be 2, 3 or 4"),
        ("variance", r"norm \(batch_norm\): running_var \+ epsilon must be above 0"),
        ("output", r"output: the output is \(n/2\) x \(n/2\)"),
        ("kind", r"output: the output must be one of sigmoid"),
        ("late", r"late: nothing may follow the output"),
    ],
)
def test_what_cannot_be_expressed_is_refused_by_node_name(kind: str, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        build(kind)


@pytest.mark.parametrize("channels", [0, 5])
def test_image_channels_are_one_to_four(channels: int) -> None:
    with pytest.raises(GraphError, match="1 to 4 channels"):
        Graph(channels)


def test_reference_refuses_wrong_images() -> None:
    graph = graph_of("plain")
    with pytest.raises(GraphError, match=r"must be \(N, H, W, 1\)"):
        reference.logits(graph, np.zeros((1, 16, 16, 3)))
    with pytest.raises(GraphError, match=r"n % 4 == 0, got 16 x 18"):
        reference.logits(graph, np.zeros((1, 16, 18, 1)))


def test_weight_layouts() -> None:
    assert canonical(np.zeros((2, 3, 4, 5))).shape == (2, 4, 5, 3)
    assert canonical_transposed(np.zeros((3, 2, 4, 5))).shape == (2, 4, 5, 3)
