"""The contract of sequence layers on (B, L, d_model)."""

import copy

import torch

TIGHT = {"rtol": 1e-10, "atol": 1e-10}


def check_steps_equal_forward(layer, u, same_states=True):
    """Stepping through a sequence, and reading it in chunks, give what forward gives, then and from then on. float64.

    With ``same_states=False`` states may be written down in several ways, if they have one future; the layer must
    have room for 8 steps more.
    """
    y, final = layer(u, return_state=True)
    stepper = layer.stepper()
    state = stepper.initial_state(u.shape[0])
    outputs = []
    for t in range(u.shape[1]):
        y_t, state = stepper(u[:, t], state)
        outputs.append(y_t)
    torch.testing.assert_close(torch.stack(outputs, 1), y, **TIGHT)

    def check_state(state):
        if same_states:
            torch.testing.assert_close(state, final, **TIGHT)
        else:
            torch.testing.assert_close(layer(u[:, -8:], state), layer(u[:, -8:], final), **TIGHT)

    check_state(state)
    state, chunks, start = None, [], 0
    for size in (1, u.shape[1] // 2, u.shape[1]):
        if start < u.shape[1]:
            chunk, state = layer(u[:, start : start + size], state, return_state=True)
            chunks.append(chunk)
            start += size
    torch.testing.assert_close(torch.cat(chunks, 1), y, **TIGHT)
    check_state(state)


def check_causality(layer, u, causal):
    """The Jacobian of output by input time: lower triangular, or full for a bidirectional layer."""
    # Not a plain sum of the features, which a norm makes constant.
    weights = torch.linspace(1, 2, u.shape[-1], dtype=u.dtype)
    jacobian = torch.autograd.functional.jacobian(lambda u: layer(u[None])[0] @ weights, u[0]).abs().sum(-1)
    future = jacobian.triu(1)
    if causal:
        # The FFT leaves rounding where an exact zero belongs.
        assert future.max() < 1e-12 * jacobian.max()
    else:
        assert (future[torch.ones_like(future).triu(1).bool()] > 1e-8 * jacobian.max()).all()
    assert (jacobian.diagonal() > 0).all()


def check_padding(layer, u, lengths):
    """Whatever stands in the padding, the valid part is that of the sequence alone."""
    padded = u.clone()
    for row, length in zip(padded, lengths, strict=True):
        row[length:] = float("nan")
    y = layer(padded, lengths=torch.tensor(lengths))
    for i, length in enumerate(lengths):
        torch.testing.assert_close(y[i, :length], layer(u[i : i + 1, :length])[0], **TIGHT)


def check_finite(layer, length):
    """No output and no gradient is NaN or infinite, even where the padding is. Any dtype."""
    u = torch.randn(2, length, layer.d_model, dtype=next(layer.parameters()).dtype)
    u[1, length // 2 :] = float("nan")
    y = layer(u.requires_grad_(), lengths=torch.tensor([length, length // 2]))
    assert y.isfinite().all()
    y.square().mean().backward()
    for tensor in (u, *layer.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()


def check_float32_gradients(layer, length, tolerance):
    """The gradient of every parameter of a float32 layer is that of the same layer in float64."""
    exact = copy.deepcopy(layer).double()
    u, cotangent = (torch.randn(2, length, layer.d_model) for _ in range(2))
    layer(u).backward(cotangent)
    exact(u.double()).backward(cotangent.double())
    for (name, found), expected in zip(layer.named_parameters(), exact.parameters(), strict=True):
        error = (found.grad.double() - expected.grad).norm()
        assert error <= tolerance * expected.grad.norm(), name


def check_compiles_and_exports(layer, longest=1 << 20):
    """Without breaks in the graph, and with a dynamic batch and length. The layer's own dtype."""
    dtype = next(layer.parameters()).dtype
    u = torch.randn(2, 33, layer.d_model, dtype=dtype)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(u), layer(u))
    compiled(u).sum().backward()
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=longest)}
    exported = torch.export.export(layer, (u,), dynamic_shapes=(dims,)).module()
    for shape in ((5, 100), (3, 2)):
        check_program(exported, layer, torch.randn(*shape, layer.d_model, dtype=dtype))


@torch.no_grad()
def check_program(exported, layer, u):
    """That an exported layer, which is made of other products than the layer, is as good as it on u."""
    if u.dtype == torch.float64:
        torch.testing.assert_close(exported(u), layer(u))
        return
    expected = copy.deepcopy(layer).double()(u.double())
    own, found = ((y.double() - expected).norm() / expected.norm() for y in (layer(u), exported(u)))
    assert found <= 2 * own + 4 * torch.finfo(u.dtype).eps, (found, own)


def check_autocast(layer):
    u = torch.randn(2, 50, layer.d_model)
    exact = layer(u)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(u)
    y.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    assert (y.float() - exact).norm() / exact.norm() < 8 * torch.finfo(torch.bfloat16).eps
    half = copy.deepcopy(layer).bfloat16()
    assert half(u.bfloat16()).dtype == torch.bfloat16


def check_copies(layer):
    u = torch.randn(2, 9, layer.d_model)
    fresh = copy.deepcopy(layer)
    assert torch.equal(fresh(u), layer(u))
    fresh.reset_parameters()
    assert not torch.equal(fresh(u), layer(u))
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(u), layer(u))


def check_meta(build):
    layer = build(device="meta")
    assert all(p.is_meta for p in layer.parameters())
    u = torch.randn(2, 9, layer.d_model)
    assert layer(u.to("meta")).shape == u.shape
    layer.to_empty(device="cpu").reset_parameters()
    assert layer(u).isfinite().all()


def check_past_is_kept(layer, u, channel_mixing=True):
    """What is no number at a step leaves the steps before it and the other sequences as they are."""
    with torch.no_grad():
        clean = layer(u)
        size = clean.abs().max()
        for value in (float("nan"), float("inf")):
            for t in {0, 1, u.shape[1] // 2, u.shape[1] - 1}:
                broken = u.clone()
                broken[1, t, u.shape[2] // 2] = value
                y = layer(broken)
                kept = torch.ones_like(y, dtype=torch.bool)
                kept[1, t:] = False
                assert not y[1, t].isfinite().all()
                torch.testing.assert_close(y[kept] / size, clean[kept] / size, rtol=0, atol=1e-5)
                if not channel_mixing:
                    others = torch.arange(u.shape[2]) != u.shape[2] // 2
                    torch.testing.assert_close(y[..., others] / size, clean[..., others] / size, rtol=0, atol=1e-5)


def check_empty_batch(layer, inputs):
    """No sequences give no outputs, and gradients of zero; in half precision as well."""
    for variant in (layer, copy.deepcopy(layer).bfloat16()):
        _check_empty(variant, inputs, layer)


def check_compiled_empty_batch(layer, inputs):
    """The same, compiled."""
    _check_empty(torch.compile(copy.deepcopy(layer), backend="aot_eager"), inputs, layer)


def _check_empty(variant, inputs, layer):
    half = inputs.bfloat16() if inputs.is_floating_point() else inputs
    given = half if any(p.dtype == torch.bfloat16 for p in variant.parameters()) else inputs
    given = given[:0].clone().requires_grad_(given.is_floating_point())
    y = variant(given)
    assert y.shape[0] == 0
    assert y.shape[1:] == layer(inputs).shape[1:]
    y.float().square().sum().backward()
    assert not given.is_floating_point() or given.grad.shape == given.shape
    assert not any(p.grad is not None and p.grad.any() for p in variant.parameters())
