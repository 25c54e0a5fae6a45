"""The PyTorch network against what `UNetSpec` promises: names, parameters, shapes, arithmetic of the odd corners."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.nn import functional

from train.model import UNet, count_parameters, output_size, summary
from unet_fast.spec import UNetSpec


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Nets this small gain nothing from a second thread, and lose much to waiting for it on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("preset", "channels", "parameters"),
    [
        ("relunet16", 3, 1_941_105),
        ("relunet16", 1, 1_940_817),
        # By hand: 16 times the 3x3 and 2x2 weights of relunet16, 4 times its biases, and the thin ends.
        ("relunet64", 1, 31_030_593),
        ("relunet64", 3, 31_031_745),
    ],
)
def test_parameter_counts_of_the_presets(preset: str, channels: int, parameters: int) -> None:
    assert count_parameters(UNet(UNetSpec.preset(preset, in_channels=channels))) == parameters


def test_names_of_weights_are_those_of_the_spec() -> None:
    names = set(UNet(UNetSpec(depth=2, base_width=8, batch_norm=True)).state_dict())
    stages = ("encoder0", "encoder1", "bottleneck", "decoder1", "decoder0")
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {f"{stage}.conv{i}.weight" for stage in stages for i in (0, 1)}
    expected |= {f"{stage}.norm{i}.{part}" for stage in stages for i in (0, 1) for part in norm}
    expected |= {f"{layer}.{part}" for layer in ("up1", "up0", "head") for part in ("weight", "bias")}
    assert names == expected
    plain = set(UNet(UNetSpec(depth=2, base_width=8, convs_per_stage=1, upsampling="nearest")).state_dict())
    assert plain == {
        f"{layer}.{part}" for layer in (*(f"{s}.conv0" for s in stages), "head") for part in ("weight", "bias")
    }


FAMILY = [
    {"padding": padding, "upsampling": upsampling, "concat": concat, "convs_per_stage": convs, "batch_norm": norm}
    for padding, upsampling, concat, convs, norm in itertools.product(
        ("same", "valid"),
        ("transpose", "nearest_conv", "nearest", "bilinear"),
        ("up_first", "skip_first"),
        (1, 2),
        (False, True),
    )
]


@pytest.mark.parametrize("fields", FAMILY, ids=lambda fields: "-".join(str(value) for value in fields.values()))
def test_every_form_runs_forward_and_back(fields: dict) -> None:
    spec = UNetSpec(in_channels=2, classes=3, base_width=8, depth=2, activation="leaky_relu", **fields)
    model = UNet(spec)
    height, width = (44, 60) if spec.padding == "valid" else (16, 24)
    if spec.padding == "valid" and spec.convs_per_stage == 1:
        height, width = 26, 42
    out = model(torch.randn(2, 2, height, width))
    assert out.shape == (2, 3, output_size(spec, height), output_size(spec, width))
    out.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("depth", [2, 3, 4, 5])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_depths_and_channels(depth: int, channels: int) -> None:
    spec = UNetSpec(in_channels=channels, depth=depth, base_width=8)
    side = 2**depth
    assert UNet(spec)(torch.randn(1, channels, side, 2 * side)).shape == (1, 1, side, 2 * side)


def test_ronneberger_572_gives_388() -> None:
    spec = UNetSpec(padding="valid", upsampling="nearest_conv", concat="skip_first", classes=2, base_width=8)
    assert output_size(spec, 572) == 388
    with torch.no_grad():
        assert UNet(spec)(torch.zeros(1, 1, 572, 572)).shape == (1, 2, 388, 388)


def test_forward_is_the_figure_written_out() -> None:
    """The network again, as plain calls, for a form with every odd corner: cropped skips, an activated nearest+conv."""
    spec = UNetSpec(
        padding="valid", upsampling="nearest_conv", up_activation="relu", concat="skip_first", batch_norm=True,
        depth=2, base_width=8, convs_per_stage=1, classes=2,
    )  # fmt: skip
    model = UNet(spec).double().eval()
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    weights = model.state_dict()

    def stage(x: torch.Tensor, name: str) -> torch.Tensor:
        x = functional.conv2d(x, weights[f"{name}.conv0.weight"])
        norm = [weights[f"{name}.norm0.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return functional.relu(functional.batch_norm(x, *norm))

    def up(x: torch.Tensor, name: str) -> torch.Tensor:
        x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        padded = torch.zeros(*x.shape[:2], x.shape[2] + 1, x.shape[3] + 1, dtype=x.dtype)
        padded[..., :-1, :-1] = x
        return functional.relu(functional.conv2d(padded, weights[f"{name}.weight"], weights[f"{name}.bias"]))

    x = torch.randn(1, 1, 30, 30, dtype=torch.float64)
    skip0 = stage(x, "encoder0")  # 28
    skip1 = stage(functional.max_pool2d(skip0, 2), "encoder1")  # 14 -> 12
    below = stage(functional.max_pool2d(skip1, 2), "bottleneck")  # 6 -> 4
    below = stage(torch.cat([skip1[..., 2:10, 2:10], up(below, "up1")], 1), "decoder1")  # 8 -> 6
    below = stage(torch.cat([skip0[..., 8:20, 8:20], up(below, "up0")], 1), "decoder0")  # 12 -> 10
    expected = functional.conv2d(below, weights["head.weight"], weights["head.bias"])
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)


def test_dropout_acts_in_training_only_and_sits_between_two_convolutions() -> None:
    spec = UNetSpec(depth=2, base_width=8, dropout=(0.5,) * 5)
    model, x = UNet(spec), torch.randn(1, 1, 16, 16)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
    single = UNet(UNetSpec(depth=2, base_width=8, convs_per_stage=1, dropout=(0.5,) * 5))
    assert torch.equal(single(x), single(x))


def test_a_fresh_network_starts_undecided_and_in_scale() -> None:
    """Training must not begin at all-background, nor with activations that explode or vanish with depth."""
    torch.manual_seed(0)
    model = UNet(UNetSpec.preset("relunet16", dropout=()))
    scales = {}
    for name in ("encoder0", "bottleneck", "decoder0"):
        model.get_submodule(name).register_forward_hook(lambda _m, _i, out, name=name: scales.update({name: out.std()}))
    with torch.no_grad():
        probability = model(torch.randn(2, 1, 64, 64)).sigmoid()
    assert probability.min() > 0.3
    assert probability.max() < 0.7
    assert all(0.1 < scale < 10 for scale in scales.values()), scales


@pytest.mark.parametrize(
    ("shape", "named"),
    [
        ((1, 3, 16, 16), "(N, 1, H, W)"),
        ((1, 16, 16), "(N, 1, H, W)"),
        ((1, 1, 18, 16), "height"),
        ((1, 1, 16, 0), "width"),
    ],
)
def test_unfit_inputs_are_refused(shape: tuple[int, ...], named: str) -> None:
    with pytest.raises(ValueError, match=named.replace("(", r"\(").replace(")", r"\)")):
        UNet(UNetSpec(depth=2, base_width=8))(torch.zeros(shape))


@pytest.mark.parametrize("size", [570, 100, 10])
def test_unfit_sizes_for_valid_padding_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=str(size)):
        output_size(UNetSpec(padding="valid"), size)


def test_summary_lists_layers_shapes_and_the_total() -> None:
    text = summary(UNet(UNetSpec.preset("relunet16", in_channels=3)))
    assert "1,941,105 parameters, input 3 x 256 x 256" in text
    assert text.count("Conv2d)") == 19
    assert text.count("ConvTranspose2d)") == 4
    assert any(
        row.split() == ["bottleneck.conv1", "(Conv2d)", "256", "x", "16", "x", "16", "590,080"]
        for row in text.splitlines()
    )
