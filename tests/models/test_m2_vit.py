import copy
import inspect
import json

import pytest
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import milkweed as mw
from milkweed.models import M2Vit
from milkweed.nn import S4ND, GatedMixer

# Every option away from its default, so that one that is not kept would show.
OPTIONS = {
    "d_input": 2,
    "d_output": 3,
    "size": [4, 6],
    "patch": 2,
    "d_model": 8,
    "depth": 2,
    "d_hidden": 12,
    "nblocks": 2,
    "mixer": "s4nd",
    "mixer_options": {"kind": "s4d", "d_state": 4, "output": "linear"},
    "dropout": 0.1,
}
LONG_CONV = OPTIONS | {"mixer": "long_conv", "mixer_options": {"width": 8}}
BOTH = pytest.mark.parametrize("options", [LONG_CONV, OPTIONS], ids=["long_conv", "s4nd"])


def images(*batch, **kwargs):
    return torch.randn(*batch, 2, 4, 6, **kwargs)


def test_every_option_is_in_the_config():
    assert set(OPTIONS) == set(inspect.signature(M2Vit).parameters)
    assert json.loads(json.dumps(M2Vit(**OPTIONS).config)) == {"name": "M2Vit", "options": OPTIONS}
    assert M2Vit(**OPTIONS | {"size": (4, 6)}).options["size"] == [4, 6]


@BOTH
def test_save_and_load(options, tmp_path):
    model = M2Vit(**options).eval()
    mw.save_pretrained(model, tmp_path)
    x = images(3)
    assert torch.equal(mw.load_pretrained(tmp_path)(x), model(x))


def test_the_published_size_has_45_million_parameters():
    with torch.device("meta"):
        model = M2Vit()
        assert model(torch.empty(2, 3, 224, 224)).shape == (2, 1000)
        # Both axes at once, with state spaces of 64 numbers and a dense layer for each.
        s4nd = M2Vit(mixer="s4nd")
        assert s4nd(torch.empty(2, 3, 224, 224)).shape == (2, 1000)
    assert sum(p.numel() for p in model.parameters()) == 45_619_672
    assert sum(p.numel() for p in s4nd.parameters()) == 35_850_472
    # A dense ViT-b of this depth spends 56.7M on its MLPs, this one a quarter.
    weights = [b.layer for b in model.blocks if not isinstance(b.layer, GatedMixer)]
    assert sum(m.up.weight.numel() + m.down.weight.numel() for m in weights) == 12 * 2 * 768 * 3072 // 4


def literal_norm(norm, x):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def literal_mixer(mixer, x):
    """Two-sided sums over all patches."""
    count, channels = x.shape
    projected = x @ mixer.in_linear.weight.T + mixer.in_linear.bias
    short = torch.zeros_like(projected)
    for t in range(count):
        short[t] = mixer.short_conv.bias
        for lag in range(min(3, t + 1)):
            short[t] += mixer.short_conv.weight[:, 2 - lag] * projected[t - lag]
    x1, x2, v = short.split(channels, 1)
    kernel, reverse = mixer.long_conv.kernels()
    y = torch.zeros_like(v)
    for t in range(count):
        for s in range(count):
            weight = kernel[:, t - s] if s <= t else reverse[:, s - t - 1]
            y[t] += weight * (v * x1)[s]
        y[t] += mixer.long_conv.skip * (v * x1)[t]
    return (y * x2) @ mixer.out_linear.weight.T + mixer.out_linear.bias


def literal_mlp(mlp, x):
    def blocks(layer, x):
        return x @ torch.block_diag(*layer.weight).T + layer.bias

    return blocks(mlp.down, F.gelu(blocks(mlp.up, x)))


def literal(model, image):
    """One image, patch by patch."""
    (rows, columns), p = (length // model.patch for length in model.size), model.patch
    patches = torch.stack(
        [
            image[:, p * i : p * (i + 1), p * j : p * (j + 1)].reshape(-1) @ model.encoder.weight.T
            + model.encoder.bias
            + model.positions[i, j]
            for i in range(rows)
            for j in range(columns)
        ]
    )
    for block in model.blocks:
        inner = literal_mixer if isinstance(block.layer, GatedMixer) else literal_mlp
        patches = patches + inner(block.layer, literal_norm(block.norm.norm, patches))
    mean = literal_norm(model.norm, patches).mean(0)
    return mean @ model.head.weight.T + model.head.bias


@pytest.mark.parametrize("size", [[4, 6], [2, 2], [2, 14]], ids=["6 patches", "1", "7"])
def test_values_and_gradients_are_those_of_the_sums(size):
    model = M2Vit(**LONG_CONV | {"size": size, "dropout": 0.0}).double()
    x = torch.randn(2, 2, *size, dtype=torch.float64)
    found, expected = model(x), torch.stack([literal(model, image) for image in x])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    cotangent = torch.randn_like(found)
    parameters = dict(model.named_parameters())
    for (name, _), a, b in zip(
        parameters.items(),
        torch.autograd.grad(found, list(parameters.values()), cotangent, allow_unused=True),
        torch.autograd.grad(expected, list(parameters.values()), cotangent, allow_unused=True),
        strict=True,
    ):
        a, b = (torch.zeros(1, dtype=torch.float64) if g is None else g for g in (a, b))
        torch.testing.assert_close(a, b.expand_as(a), rtol=1e-8, atol=1e-10, msg=name)


def test_float32_is_close_to_float64():
    model = M2Vit(**LONG_CONV | {"dropout": 0.0})
    x = images(4)
    exact = copy.deepcopy(model).double()(x.double())
    assert (model(x) - exact).norm() <= 1e-5 * exact.norm()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
    assert (y.float() - exact).norm() <= 8 * torch.finfo(torch.bfloat16).eps * exact.norm()


@BOTH
def test_pixels_in_reading_order_are_the_same_image(options):
    model = M2Vit(**options).eval()
    x = images(3)
    y = model(x)
    pixels = x.flatten(2).transpose(1, 2)
    assert not pixels.is_contiguous()
    torch.testing.assert_close(model(pixels), y)
    torch.testing.assert_close(model(pixels.contiguous(), torch.full((3,), 24)), y)
    torch.testing.assert_close(model(x.to(memory_format=torch.channels_last)), y)
    assert model(x[:0]).shape == (0, 3)


@BOTH
def test_every_parameter_learns(options):
    model = M2Vit(**options)
    model(images(4)).square().sum().backward()
    # Of six patches the last lag back, and the positions of lags that do not exist, are never seen.
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


@BOTH
def test_gradient_checkpointing(options):
    model, x = M2Vit(**options).eval(), images(4)
    checkpoint(model, x, use_reentrant=False).sum().backward()
    saved = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(x).sum().backward()
    for a, p in zip(saved, model.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad)


@pytest.mark.sampled(2)
@BOTH
def test_compiles_whole(options):
    model, x = M2Vit(**options | {"dropout": 0.0}), images(4)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))
    compiled(x).sum().backward()


def test_mixing_is_over_both_axes_or_all_patches():
    """What one patch says reaches every other: forwards, backwards, up and down."""
    for options in (LONG_CONV, OPTIONS):
        model = M2Vit(**options | {"depth": 1, "dropout": 0.0}).double()
        mixer = model.blocks[0].layer
        assert isinstance(mixer, S4ND if options is OPTIONS else GatedMixer)
        u = torch.randn(1, 2, 3, 8, dtype=torch.float64, requires_grad=True)
        y = mixer(u if options is OPTIONS else u.flatten(1, 2)).reshape(6, 8)
        for i in range(6):
            reach = torch.autograd.grad(y[i].sum(), u, retain_graph=True)[0].reshape(6, 8).abs().sum(1)
            assert (reach > 0).all()


def test_the_positions_are_not_decayed():
    groups = mw.nn.parameter_groups(M2Vit(**LONG_CONV), lr=1e-3, weight_decay=0.1)
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    model_positions = [p for group in groups for p in group["params"] if p.shape == (2, 3, 8)]
    assert len(model_positions) == 1
    assert id(model_positions[0]) not in decayed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 0}, "depth must be at least 1; got 0"),
        ({"patch": 0}, "patch must be at least 1; got 0"),
        ({"size": [28]}, r"size must be the image's height and width, e.g. \[28, 28\]; got \[28\]"),
        ({"size": [28, 30], "patch": 4}, r"multiples of patch=4; got \[28, 30\]; crop or pad 30 to 32"),
        ({"size": [2, 28], "patch": 4}, r"crop or pad 2 to 4"),
        ({"size": 28}, r"height and width, e.g. \[28, 28\]; got 28"),
        ({"mixer_options": {"dims": 3}}, "mixer_options='dims' is unknown"),
        ({"mixer_options": {"kidn": "s4d"}}, "did you mean 'kind'"),
        (LONG_CONV | {"mixer_options": {"bidirectional": False}}, "mixer_options='bidirectional' is unknown"),
        ({"mixer": "longconv"}, "did you mean 'long_conv'"),
        ({"mixer_options": {"d_state": 8, "kind": "s5"}}, "kind='s5' is unknown"),
        ({"nblocks": 16}, "nblocks=16"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        M2Vit(**OPTIONS | options)


@pytest.mark.parametrize(
    "x",
    [torch.zeros(3, 4, 6), torch.zeros(1, 2, 6, 4), torch.zeros(1, 3, 4, 6), torch.zeros(1, 23, 2), torch.zeros(24, 2)],
)
def test_images_of_another_size_are_refused(x):
    with pytest.raises(ValueError, match=r"\(B, 2, 4, 6\) or their pixels in reading order, \(B, 24, 2\)"):
        M2Vit(**OPTIONS)(x)


def test_whole_numbers_are_refused():
    with pytest.raises(ValueError, match=r"use inputs.float\(\)"):
        M2Vit(**OPTIONS)(torch.zeros(1, 2, 4, 6, dtype=torch.uint8))
