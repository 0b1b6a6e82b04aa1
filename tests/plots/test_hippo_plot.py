import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image

from milkweed import ssm
from milkweed.plots import hippo as module
from milkweed.plots.hippo import (
    SAMPLES,
    frame_samples,
    make_signal,
    remember,
    save_hippo,
    save_hippo_animation,
    spectrum,
)


def size(name, d_state):
    return d_state + (1 - d_state % 2) if ssm.BASES[name].fourier else d_state


def test_the_signal_is_standardised_and_always_the_same():
    signal = make_signal(500)
    assert signal.mean().abs() < 1e-12
    assert signal.square().mean() == pytest.approx(1)
    assert torch.equal(signal, make_signal(500))
    assert not torch.equal(signal, make_signal(500, seed=4))


@pytest.mark.parametrize("name", ssm.BASES)
def test_spectrum(name):
    d_state = size(name, 6)
    A, _ = ssm.hippo(name, d_state)
    own, normal = spectrum(name, d_state)
    assert own.shape == (d_state,)
    # Newton's identities: the power sums of the eigenvalues are traces.
    for power in (1, 2, 3):
        expected = torch.linalg.matrix_power(A, power).trace()
        torch.testing.assert_close((own**power).sum().real, expected, atol=1e-6, rtol=1e-6)
    correction = ssm.BASES[name].correction
    if correction is None:
        assert normal is None
        return
    P = correction(d_state)
    whole = A + P.T @ P
    assert normal.shape == (d_state,)
    torch.testing.assert_close(normal.sum().real, whole.trace())
    torch.testing.assert_close((normal**2).sum().real, (whole @ whole).trace())
    torch.testing.assert_close(normal.real, torch.full_like(normal.real, ssm.BASES[name].damping))


def test_no_eigenvalues_rather_than_wrong_ones():
    # With 60 digits the largest of LegT at N = 64 is 60.46; float64 gives about 107, and no warning.
    assert spectrum("legt", 64)[0] is None
    largest = spectrum("legt", 8)[0].abs().max()
    assert float(largest) == pytest.approx(6.4460813339, rel=1e-6)


def test_a_window_is_reconstructed_and_the_rest_forgotten():
    memory = remember("legt", 48)
    times, values = memory.past(memory.moment)
    dt = memory.reconstruction.dt
    assert len(times) == round(2 / dt)
    assert times[0] == pytest.approx(memory.time(memory.moment) - 2 + dt / 2)
    assert times[-1] == pytest.approx(memory.time(memory.moment) - dt / 2)
    last = memory.moment - len(times)
    torch.testing.assert_close(times, memory.times[last : memory.moment])
    torch.testing.assert_close(values, memory.signal[last : memory.moment], atol=0.01, rtol=0)
    assert memory.rmse(memory.moment) < 1e-3


def test_the_error_is_weighed_by_the_measure():
    memory = remember("legs", 12)
    samples, dt = 300, memory.reconstruction.dt
    ago = (np.arange(samples) + 0.5) * dt
    z = 2 * np.exp(-ago) - 1
    functions = np.stack([math.sqrt(2 * n + 1) * np.polynomial.Legendre.basis(n)(z) for n in range(12)])
    values = memory.coefficients[samples - 1].numpy() @ functions
    wrong = values - memory.signal[:samples].flip(0).numpy()
    weight = np.exp(-ago)
    assert memory.rmse(samples) == pytest.approx(math.sqrt((weight * wrong**2).sum() / weight.sum()), rel=1e-9)
    torch.testing.assert_close(memory.weight(samples).flip(0), torch.from_numpy(weight))


def test_scaled_covers_the_whole_past_evenly():
    memory = remember("legs", 48, scaled=True)
    for samples in (100, 600):
        times, _ = memory.past(samples)
        torch.testing.assert_close(times, memory.times[:samples])
        weight = memory.weight(samples)
        assert weight.sum() * memory.reconstruction.dt == pytest.approx(1)
        assert (weight == weight[0]).all()
        assert memory.rmse(samples) < 0.01


def test_more_coefficients_remember_more():
    errors = [remember("legs", n).rmse(500) for n in (4, 16, 64)]
    assert errors[0] > 1.5 * errors[1] > 3 * errors[2]


def test_an_unknown_basis_is_refused():
    with pytest.raises(ValueError, match="did you mean 'legs'"):
        remember("legss", 8)
    with pytest.raises(ValueError, match="scaled=True is for name='legs'"):
        remember("legt", 8, scaled=True)


def test_frames():
    frames = frame_samples()
    assert frames[0] >= 1
    assert frames[-1] == SAMPLES
    assert sorted(frames) == frames
    assert len(set(frames)) == module.FRAMES
    assert frames.count(SAMPLES) == 1 + module.FRAMES_PER_SECOND // 2
    assert frame_samples(3)[:3] == [1, 2, 3]


@pytest.mark.parametrize("name", ssm.BASES)
@pytest.mark.parametrize("d_state", [1, 8])
def test_figure(tmp_path, name, d_state):
    path = tmp_path / "hippo.png"
    save_hippo(remember(name, size(name, d_state)), path)
    with Image.open(path) as image:
        assert image.size == (1950, 1200)
    assert list(tmp_path.iterdir()) == [path]


def test_a_basis_that_diverges_is_drawn(tmp_path):
    memory = remember("chebt", 64)
    assert memory.rmse(memory.moment) > 1e3
    save_hippo(memory, tmp_path / "hippo.png")
    assert (tmp_path / "hippo.png").is_file()


@pytest.mark.parametrize(("name", "scaled"), [("legs", False), ("legs", True), ("chebt", False)])
def test_animation(tmp_path, monkeypatch, name, scaled):
    monkeypatch.setattr(module, "FRAMES", 4)
    monkeypatch.setattr(module, "FRAMES_PER_SECOND", 2)
    path, shown = tmp_path / "new" / "hippo.gif", []
    save_hippo_animation(remember(name, 5, scaled), path, shown.append)
    assert shown == [0, 1, 2, 3, 4]
    assert list(path.parent.iterdir()) == [path]
    with Image.open(path) as image:
        assert image.format == "GIF"
        assert image.size == (760, 460)
        pictures = []
        for frame in range(image.n_frames):
            image.seek(frame)
            pictures.append(np.asarray(image.convert("L"), dtype=int))
    assert len(pictures) >= 4
    assert all(np.abs(a - b).max() > 50 for a, b in itertools.pairwise(pictures[:4]))


def test_an_animation_that_fails_leaves_nothing(tmp_path):
    def stop(frame):
        if frame == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_hippo_animation(remember("legs", 5), tmp_path / "hippo.gif", stop)
    assert list(tmp_path.iterdir()) == []
