"""Online convolution against sums over lags in float64; its states and what it costs."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from milkweed import ops
from milkweed.nn import LongConv, OnlineConv
from milkweed.nn.filters.online_conv import ConvRecurrence


def convolve(u, kernel):
    """(B, L, D) and (D, K) float64: every output a sum over lags."""
    y = torch.zeros_like(u)
    for t in range(u.shape[1]):
        y[:, t] = torch.einsum("bsd,ds->bd", u[:, : t + 1].flip(1), kernel[:, : t + 1])
    return y


def step_through(online, u, state):
    outputs = []
    for t in range(u.shape[1]):
        y, state = online(u[:, t], state)
        outputs.append(y)
    return torch.stack(outputs, 1), state


@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 63, 64, 65, 997, 1000, 1024])
def test_steps_and_reading_equal_the_sums(length):
    kernel, u = torch.randn(3, length, dtype=torch.float64), torch.randn(2, length, 3, dtype=torch.float64)
    expected, online = convolve(u, kernel), OnlineConv(kernel)
    y, state = step_through(online, u, online.initial_state(2))
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    y, other = online.read(u, online.initial_state(2))
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    # Reading leaves the tiles to the first step that needs them; the inputs are kept in the same blocks.
    assert (other.position, other.tiles, other.due) == (length, (), None)
    torch.testing.assert_close((other.recent, other.blocks), (state.recent, state.blocks))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 150)), min_size=1, max_size=6), st.integers(0, 70))
def test_any_mixture_of_steps_and_reading(pieces, spare):
    length = sum(size for _, size in pieces)
    kernel = torch.randn(2, length + spare, dtype=torch.float64)
    u, online = torch.randn(1, length, 2, dtype=torch.float64), OnlineConv(kernel)
    state, outputs, start = online.initial_state(1), [], 0
    for stepping, size in pieces:
        piece = u[:, start : start + size]
        y, state = step_through(online, piece, state) if stepping else online.read(piece, state)
        outputs.append(y)
        start += size
    assert state.position == length
    torch.testing.assert_close(torch.cat(outputs, 1), convolve(u, kernel), rtol=1e-9, atol=1e-9)


def test_states_are_not_changed():
    online = OnlineConv(torch.randn(3, 200, dtype=torch.float64))
    u = torch.randn(2, 200, 3, dtype=torch.float64)
    states, outputs, state = [], [], online.initial_state(2)
    for t in range(200):
        states.append((state, copy.deepcopy(state)))
        y, state = online(u[:, t], state)
        outputs.append(y)
    for t, (state, before) in enumerate(states):
        torch.testing.assert_close(tuple(state), tuple(before), rtol=0, atol=0)
        # Old states go on as they did, and into another future.
        assert torch.equal(online(u[:, t], state)[0], outputs[t])
        online.read(torch.randn(2, 200 - t, 3, dtype=torch.float64), state)
    assert torch.equal(online(u[:, 77], states[77][0])[0], outputs[77])


def test_a_step_shares_what_it_does_not_replace():
    # Copying a state of the size of the past at every step would make T steps quadratic.
    online, fresh = OnlineConv(torch.randn(2, 4096)), []
    state = online.initial_state(1)
    for _ in range(4096):
        old = {id(tensor) for tensor in (*state.blocks, *state.tiles, state.due)}
        _, state = online(torch.randn(1, 2), state)
        new = [tensor for tensor in (*state.blocks, *state.tiles, state.due) if id(tensor) not in old]
        fresh.append(sum(tensor.numel() for tensor in new if tensor is not None))
    # 2 channels, two arrays, of the 8 levels from 32 to 4096 each at most all lags once.
    assert sum(fresh) < 2 * 2 * 8 * 4096
    # A block appears in one step of 32, and in the next one its tile.
    assert sorted(fresh)[len(fresh) * 9 // 10] == 0


def test_float32_at_4096_steps():
    layer = LongConv(8, 4096)
    u, stepper = torch.randn(2, 4096, 8), layer.stepper()
    with torch.no_grad():
        y = layer(u)
        truth = convolve(u.double(), layer.kernels()[0].double()) + layer.skip.double() * u.double()
    found, state = step_through(stepper, u, stepper.initial_state(2))
    torch.testing.assert_close(found, y, rtol=0, atol=1e-4)
    assert (found.double() - truth).abs().max() < 1e-4
    assert state.position == 4096


@pytest.mark.parametrize("prompt", [1, 100, 1000, 1023, 1024, 1337])
def test_steps_go_on_after_a_prompt(prompt):
    layer = LongConv(4, 1400, dtype=torch.float64)
    u, stepper = torch.randn(3, 1400, 4, dtype=torch.float64), layer.stepper()
    y, state = stepper.read(u[:, :prompt], stepper.initial_state(3))
    rest, _ = step_through(stepper, u[:, prompt:], state)
    torch.testing.assert_close(torch.cat([y, rest], 1), layer(u).detach(), rtol=1e-10, atol=1e-10)


def test_a_prompt_costs_one_convolution(monkeypatch):
    layer, lengths, tiles = LongConv(4, 5000, width=8), [], []
    convolve, tile = ops.fft_conv, ConvRecurrence._tile
    monkeypatch.setattr(
        ops, "fft_conv", lambda u, *args, **kwargs: (lengths.append(u.shape[-1]), convolve(u, *args, **kwargs))[1]
    )
    monkeypatch.setattr(
        ConvRecurrence, "_tile", lambda self, block: (tiles.append(block.shape[-1]), tile(self, block))[1]
    )
    u, stepper = torch.randn(2, 4095, 4), layer.stepper()
    with torch.no_grad():
        _, state = layer(u, return_state=True)
        _, again = stepper.read(u, stepper.initial_state(2))
    assert (lengths, tiles) == ([4095, 4095], [])
    for each in (state, again):
        tiles.clear()
        _, each = stepper(u[:, 0], each)
        assert tiles == [2048, 1024, 512, 256, 128, 64, 32]
        _, each = stepper(u[:, 0], each)
        assert tiles[7:] == [4096]
        stepper(u[:, 0], each)
        assert len(tiles) == 8


def test_a_long_piece_is_convolved_with_the_past_and_a_short_one_uses_tiles():
    kernel, u = torch.randn(2, 2000, dtype=torch.float64), torch.randn(1, 2000, 2, dtype=torch.float64)
    online, expected = OnlineConv(kernel), convolve(u, kernel)
    state, start = online.initial_state(1), 0
    for size, with_tiles in ((300, False), (300, False), (100, True), (700, False), (50, True)):
        y, state = online.read(u[:, start : start + size], state)
        torch.testing.assert_close(y, expected[:, start : start + size], rtol=1e-10, atol=1e-10)
        assert bool(state.tiles) == with_tiles
        start += size


def test_a_state_does_not_change_with_the_prompt():
    layer = LongConv(3, 100, dtype=torch.float64, width=8)
    u, stepper = torch.randn(2, 90, 3, dtype=torch.float64), layer.stepper()
    expected, _ = stepper(u[:, 0], stepper.read(u, stepper.initial_state(2))[1])
    first = u[:, 0].clone()
    with torch.no_grad():
        states = [layer(u, return_state=True)[1], stepper.read(u, stepper.initial_state(2))[1]]
    states.append(stepper.read(u[:, 60:], stepper.read(u[:, :60], stepper.initial_state(2))[1])[1])
    u.fill_(float("nan"))
    for state in states:
        torch.testing.assert_close(stepper(first, state)[0], expected, rtol=1e-10, atol=1e-10)


def test_reading_keeps_gradients_only_where_asked():
    kernel = torch.randn(3, 90, dtype=torch.float64, requires_grad=True)
    u = torch.randn(2, 3, 90, dtype=torch.float64, requires_grad=True)
    online, cotangent = OnlineConv(kernel), torch.randn(2, 3, 90, dtype=torch.float64)
    first, state = online.recurrence.extend(u[..., :40], online.initial_state(2))
    second, _ = online.recurrence.extend(u[..., 40:], state)
    found = torch.autograd.grad(torch.cat([first, second], -1), (u, kernel), cotangent)
    expected = torch.autograd.grad(convolve(u.mT, kernel).mT, (u, kernel), cotangent)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert not online.read(u.mT, online.initial_state(2))[0].requires_grad


def test_half_precision_streams():
    layer = LongConv(4, 300).bfloat16()
    u, stepper = torch.randn(1, 300, 4).bfloat16(), layer.stepper()
    y, state = step_through(stepper, u, stepper.initial_state(1))
    assert y.dtype == torch.bfloat16
    assert state.due.dtype == torch.float32
    torch.testing.assert_close(y.float(), layer(u).detach().float(), rtol=1e-2, atol=1e-2)


def test_strided_input_and_empty_batch():
    kernel = torch.randn(3, 100, dtype=torch.float64)
    online, u = OnlineConv(kernel), torch.randn(3, 200, 2, dtype=torch.float64)[:, ::2].permute(2, 1, 0)
    torch.testing.assert_close(online.read(u, online.initial_state(2))[0], convolve(u, kernel), rtol=1e-10, atol=1e-10)
    nobody = online.initial_state(0)
    y, nobody = online.read(u[:0, :70], nobody)
    assert y.shape == (0, 70, 3)
    y, nobody = online(u[:0, 0], nobody)
    assert y.shape == (0, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda online, state: online(torch.randn(2, 4), state), ValueError, r"u must be \(B, 3\)"),
        (lambda online, state: online.read(torch.randn(2, 3), state), ValueError, r"u must be \(B, L, 3\)"),
        (lambda online, state: online(torch.randn(1, 3), state), ValueError, "state must be of 1 sequences"),
        (lambda online, state: online(torch.randn(2, 3), None), TypeError, "state must be from initial_state"),
        (lambda online, state: online.read(torch.randn(2, 11, 3), state), ValueError, "at most l_max=10 steps; 0 were"),
        (
            lambda online, state: online(torch.randn(2, 3), online.read(torch.randn(2, 10, 3), state)[1]),
            ValueError,
            "at most l_max=10 steps; 10 were taken, and 1 more",
        ),
    ],
)
def test_bad_input(call, error, message):
    online = OnlineConv(torch.randn(3, 10))
    with pytest.raises(error, match=message):
        call(online, online.initial_state(2))
