"""A HiPPO basis: its functions and measure, its spectrum, and the past of a signal as its coefficients remember it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from milkweed import ssm
from milkweed._files import atomic_write
from milkweed.plots.figure import BLUE, GRID, MUTED, VAL_COLOUR, caption, legend, new_figure, plain, ramp, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SAMPLES, HARMONICS = 600, 14
FRAMES, FRAMES_PER_SECOND = 50, 10
FIRST, RANDOM_KERNELS = 5, 3
# How long a signal has to be to show what an unlimited basis forgets, in the basis' own time.
_LONG = {"legs": 5.0, "legsd": 5.0, "fourier_decay": 8.0, "foud": 6.0, "lagt": 60.0, "glagt": 12.0}
_KERNELS_LONG = _LONG | {"lagt": 12.0, "glagt": 8.0}
# The kernels of this one grow after its window, until rounding errors are all there is.
_DIVERGING = "chebt"
_PALE_BLUE, _SHADE = "#9dbcd6", "#f3c9a8"
_SHADE_HEIGHT = 0.45
_LEFT = 0.07  # of an animation's panels


@dataclass(frozen=True)
class Memory:
    """A signal, and what a basis remembers of it after each sample."""

    reconstruction: ssm.Reconstruction  # the basis and how it is used
    signal: Tensor  # (T,)
    coefficients: Tensor  # (T, N)

    @property
    def name(self) -> str:
        """The basis."""
        return self.reconstruction.name

    @property
    def count(self) -> int:
        """Samples of the signal."""
        return len(self.signal)

    @property
    def times(self) -> Tensor:
        """(T,), the middle of each sample."""
        return (torch.arange(self.count, dtype=torch.float64) + 0.5) * self.reconstruction.dt

    @cached_property
    def moment(self) -> int:
        """Number of samples after which a still picture is taken."""
        return self.count * 5 // 6

    def time(self, samples: int) -> float:
        """The time, in units of the basis, at which so many samples have arrived."""
        return samples * self.reconstruction.dt

    def covered(self, samples: int) -> int:
        """How many of the last samples the basis describes: all, or as many as fit into its window."""
        window = ssm.BASES[self.name].window / self.reconstruction.dt
        return samples if self.reconstruction.scaled else int(min(samples, window))

    def past(self, samples: int) -> tuple[Tensor, Tensor]:
        """Read the past back after so many samples: times from old to new, and the reconstruction there."""
        dt, covered = self.reconstruction.dt, self.covered(samples)
        ago = (torch.arange(covered, dtype=torch.float64).flip(0) + 0.5) * dt
        elapsed = self.time(samples) if self.reconstruction.scaled else None
        return self.time(samples) - ago, self.reconstruction.past(self.coefficients[samples - 1], ago, elapsed)

    def weight(self, samples: int) -> Tensor:
        """The density of the measure at the times of `past`."""
        dt, covered = self.reconstruction.dt, self.covered(samples)
        if self.reconstruction.scaled:
            return torch.full((covered,), 1 / self.time(samples), dtype=torch.float64)
        return ssm.measure(self.name, (torch.arange(covered, dtype=torch.float64).flip(0) + 0.5) * dt)

    def rmse(self, samples: int) -> float:
        """The root mean squared error of the reconstruction, weighted by the measure."""
        weight = self.weight(samples)
        wrong = self.past(samples)[1] - self.signal[samples - self.covered(samples) : samples]
        return float(((weight * wrong.square()).sum() / weight.sum()).sqrt())


def make_signal(count: int, seed: int = 3) -> Tensor:
    """Draw a smooth signal (T,), float64, the same for every basis, with mean 0 and root mean square 1."""
    generator = torch.Generator().manual_seed(seed)
    k = torch.arange(1, HARMONICS + 1, dtype=torch.float64)
    sizes = torch.randn(2, HARMONICS, dtype=torch.float64, generator=generator) / (1 + (k / 7) ** 2)
    angles = 2 * math.pi * k * (torch.arange(count, dtype=torch.float64)[:, None] + 0.5) / count
    signal = torch.cos(angles) @ sizes[0] + torch.sin(angles) @ sizes[1]
    signal = signal - signal.mean()
    return signal / signal.square().mean().sqrt()


def remember(name: str, d_state: int, scaled: bool = False) -> Memory:
    """Run a signal through a basis of `milkweed.ssm.hippo`, stretched with the time that has passed if ``scaled``.

    The signal lasts two windows, one where the basis diverges afterwards.
    """
    ssm.hippo(name, d_state)  # refuses an unknown name before its window is looked up
    reconstruction = ssm.Reconstruction(name, d_state, dt=_duration(name) / SAMPLES, scaled=scaled)
    signal = make_signal(SAMPLES)
    return Memory(reconstruction, signal, reconstruction.coefficients(signal))


def spectrum(name: str, d_state: int) -> tuple[Tensor | None, Tensor | None]:
    """The eigenvalues of a basis' A and of its normal part, (N,) complex.

    The first are None where A is so far from normal that float64 does not find them (LegT at N = 64: 107 instead of
    60.46), the second where A is not normal plus low rank.
    """
    A = ssm.hippo(name, d_state)[0]
    own = _resolved_eigenvalues(A)
    if ssm.BASES[name].correction is None:
        return own, None
    Lambda = ssm.nplr(name, d_state).Lambda
    conjugates = Lambda[d_state % 2 :].conj()
    normal = torch.cat([Lambda, conjugates])
    # Where nothing is corrected, the normal part is A itself.
    return (normal if ssm.BASES[name].rank == 0 else own), normal


def _resolved_eigenvalues(A: Tensor) -> Tensor | None:
    if torch.equal(A, A.tril()):
        return torch.complex(A.diagonal(), torch.zeros_like(A.diagonal()))
    found = torch.linalg.eigvals(A)
    # The same numbers in exact arithmetic, but from other rounding errors.
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(A.shape, dtype=A.dtype, generator=generator)).Q
    again = torch.linalg.eigvals(turn.T @ A @ turn)
    distance = (found[:, None] - again).abs().amin(1).max()
    return found if distance <= 1e-4 * found.abs().max() else None


def save_hippo(memory: Memory, path: Path) -> None:
    """Draw a basis: kernels, functions, spectrum, random kernels, and the past of a signal."""
    name, d_state = memory.name, memory.reconstruction.d_state
    figure = new_figure(13, 8)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12, wspace=0.04, hspace=0.06)
    figure.suptitle(f"HiPPO basis {name}, N = {d_state}", x=0.01, ha="left", fontsize=13, fontweight="bold")
    grid = figure.add_gridspec(2, 3)
    _draw_kernels(figure.add_subplot(grid[0, 0]), name, d_state)
    _draw_functions(figure.add_subplot(grid[0, 1]), name, d_state)
    _draw_spectrum(figure.add_subplot(grid[0, 2]), name, d_state)
    past = figure.add_subplot(grid[1, :2])
    _Reconstruction(past, memory).show(memory.moment)
    past.legend(loc="lower right", bbox_to_anchor=(1, 1.005), ncols=3, frameon=False, fontsize=8, labelcolor=MUTED)
    past.set_xlabel(_time_label(memory.reconstruction.scaled), fontsize=9, color=MUTED)
    caption(past, "The past of a signal, read back from N numbers", _accuracy(memory, memory.moment))
    _draw_random(figure.add_subplot(grid[1, 2]), name, d_state)
    save_figure(figure, path)


def save_hippo_animation(memory: Memory, path: Path, show: Callable[[int], None] = lambda _: None) -> None:
    """Move along a signal and draw what is remembered of it; `show` is called with the number of frames so far."""
    figure = new_figure(7.6, 4.6)
    from matplotlib.animation import PillowWriter

    upper, lower = _animation_panels(figure, memory)
    picture = _Reconstruction(upper, memory)
    heights = memory.coefficients.abs().numpy()
    bars = lower.stairs(heights[0], np.arange(heights.shape[1] + 1) - 0.5, fill=True, color=VAL_COLOUR, linewidth=0)
    picture.show(1)
    upper.legend(loc="upper right", bbox_to_anchor=(1, -0.09), ncols=3, frameon=False, fontsize=8, labelcolor=MUTED)
    text = figure.text(_LEFT, 0.89, "", fontsize=9, color=MUTED)
    writer = PillowWriter(fps=FRAMES_PER_SECOND)
    frames = frame_samples(memory.count)
    with atomic_write(path) as temporary:
        # Not `writer.saving`, which writes what there is when it is interrupted.
        writer.setup(figure, temporary, dpi=100)
        for index, samples in enumerate(frames):
            show(index)
            picture.show(samples)
            text.set_text(f"t = {memory.time(samples):.2f}, {_accuracy(memory, samples)}")
            bars.set_data(heights[samples - 1])
            writer.grab_frame(facecolor="white")
        writer.finish()


def frame_samples(count: int = SAMPLES) -> list[int]:
    """Samples so far at each frame of an animation, ascending; the last one stays for half a second."""
    moments = np.unique(np.linspace(0, count, FRAMES + 1).round().astype(int))[1:].tolist()
    return moments + moments[-1:] * (FRAMES_PER_SECOND // 2)


class _Reconstruction:
    """Lines of a panel that follow a moment: signal, future, measure, reconstruction, now."""

    def __init__(self, axes: "Axes", memory: Memory) -> None:
        self._axes, self._memory = axes, memory
        times, signal = memory.times.numpy(), memory.signal.numpy()
        axes.plot(times, signal, color="#d1d5db", linewidth=1.2)
        (self._signal,) = axes.plot([], [], color=_PALE_BLUE, linewidth=3.0, label="signal")
        (self._past,) = axes.plot([], [], color=VAL_COLOUR, linewidth=1.4, label="reconstruction")
        self._now = axes.axvline(0, color=MUTED, linewidth=0.9)
        self._shade = None
        margin = 0.25 * float(signal.max() - signal.min())
        # A reconstruction that leaves the picture does not make the signal small.
        axes.set(xlim=(0, memory.time(memory.count)), ylim=(signal.min() - margin, signal.max() + margin))
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        plain(axes)

    def show(self, samples: int) -> None:
        """Move to the moment after ``samples`` samples."""
        memory = self._memory
        self._signal.set_data(memory.times[:samples].numpy(), memory.signal[:samples].numpy())
        times, values = (part.numpy() for part in memory.past(samples))
        self._past.set_data(times, np.clip(values, -1e6, 1e6))
        self._now.set_xdata([memory.time(samples)] * 2)
        if self._shade is not None:
            self._shade.remove()
        weight = memory.weight(samples)
        self._shade = _shade(self._axes, times, weight.numpy(), float(weight.max()))


def _animation_panels(figure: "Figure", memory: Memory) -> tuple["Axes", "Axes"]:
    # Placed once: an automatic layout would shake from frame to frame.
    figure.set_layout_engine("none")
    upper = figure.add_axes((_LEFT, 0.36, 0.98 - _LEFT, 0.49))
    lower = figure.add_axes((_LEFT, 0.1, 0.98 - _LEFT, 0.15))
    scaled = ", scaled" if memory.reconstruction.scaled else ""
    title = f"HiPPO {memory.name}{scaled}: the past from N = {memory.reconstruction.d_state} numbers"
    figure.text(_LEFT, 0.94, title, fontsize=11, fontweight="bold")
    lower.set_yscale("log")
    sizes = memory.coefficients[memory.count // 5 :].abs()
    top = float(sizes.quantile(0.999)) * 2
    lower.set(ylim=(top * 1e-5, top), xlim=(-0.7, memory.reconstruction.d_state - 0.3))
    lower.set_title("magnitude of the coefficients, by n", loc="left", fontsize=9, color=MUTED)
    plain(lower)
    for axes in (upper, lower):
        axes.tick_params(labelsize=8)
    return upper, lower


def _draw_kernels(axes: "Axes", name: str, d_state: int) -> None:
    t = _kernel_times(name)
    A, B = ssm.hippo(name, d_state)
    kernels = ssm.basis(A, B, t)[:FIRST]
    closed = _closed_kernels(name, d_state, t)[:FIRST]
    limit = 1.12 * float(kernels[:, 3:-3].abs().max())
    weight = ssm.measure(name, t)
    _shade(axes, t.numpy(), weight.numpy(), float(weight.max()), label=r"measure $\omega$")
    # Frequencies up to N²/π, which only die out when integrated against something smooth.
    thin = {"linewidth": 0.5, "alpha": 0.45} if name == "legsd" else {"linewidth": 1.5}
    for n, colour in enumerate(_colours(len(kernels))):
        axes.plot(t, kernels[n], color=colour, **thin)
    dotted = axes.plot(t, closed.T, color="black", linewidth=0.9, linestyle=(0, (1, 2.2)))
    dotted[0].set_label(r"$p_n\omega$ in closed form" + (", times $2n+1$" if name == "lmu" else ""))
    axes.set(ylim=(-limit, limit))
    _finish_time_panel(axes, t)
    legend(axes, 0.15, 6)
    caption(axes, r"Kernels $K_n(t) = e^{tA}B$", f"the first {len(kernels)}, {_how_exact(name)}")


def _draw_functions(axes: "Axes", name: str, d_state: int) -> None:
    t = _kernel_times(name)
    functions = ssm.basis_functions(name, d_state, t)[:FIRST]
    finite = torch.where(t <= ssm.BASES[name].window, functions, math.nan)
    weight = ssm.measure(name, t)
    _shade(axes, t.numpy(), weight.numpy(), float(weight.max()), label=r"measure $\omega$")
    for n, row in enumerate(finite):
        axes.plot(t, row, color=_colours(len(finite))[n], linewidth=1.5, label=f"$p_{n}$")
    shown = finite[:, 8:-8][finite[:, 8:-8].isfinite()].abs()
    limit = 1.12 * min(float(shown.max()), 4 * float(shown.median()) + 2)
    axes.set(ylim=(-limit, limit))
    _finish_time_panel(axes, t)
    legend(axes, 0.15, 6)
    caption(
        axes,
        "Basis functions $p_n(t)$",
        r"$u(\mathrm{now} - t) \approx \sum x_n\, p_n(t)$, the past from the state $x$",
    )


def _draw_spectrum(axes: "Axes", name: str, d_state: int) -> None:
    from matplotlib.ticker import SymmetricalLogLocator

    own, normal = spectrum(name, d_state)
    if normal is not None and ssm.BASES[name].rank:
        axes.scatter(normal.real, normal.imag, s=22, facecolors="none", edgecolors=BLUE, label="its normal part Λ")
    same = ", normal" if ssm.BASES[name].rank == 0 else ""
    if own is not None:
        axes.scatter(own.real, own.imag, s=14, color=VAL_COLOUR, label=f"A{same}", linewidths=0)
    axes.axvline(0, color=MUTED, linewidth=0.8)
    everything = torch.cat(
        [each for each in (own, normal) if each is not None] or [torch.zeros(1, dtype=torch.complex128)]
    )
    highest = float(everything.imag.abs().max())
    if highest > 20:
        axes.set_yscale("symlog", linthresh=10, linscale=0.8)
        axes.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=10))
    axes.set_ylim(-1.4 * max(highest, 1), 1.4 * max(highest, 1))
    left = min(float(everything.real.min()), -1)
    axes.set_xlim(left * 1.08, -left * 0.08)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("real part", fontsize=9, color=MUTED)
    axes.set_ylabel("imaginary part", fontsize=9, color=MUTED)
    plain(axes)
    if own is not None or normal is not None:
        legend(axes, 0.15, 6)
    rank = ssm.BASES[name].rank
    details = "no normal part plus low rank" if rank is None else f"normal after a correction of rank {rank}"
    if rank == 0:
        details = "normal without a correction"
    if own is None:
        details += "; float64 cannot resolve those of A"
    caption(axes, "Eigenvalues of A", details)


def _draw_random(axes: "Axes", name: str, d_state: int) -> None:
    t = _kernel_times(name)
    A, B = ssm.hippo(name, d_state)
    # In exact arithmetic the same.
    kernels = _closed_kernels(name, d_state, t) if name == _DIVERGING else ssm.basis(A, B, t)
    generator = torch.Generator().manual_seed(1)
    C = torch.randn(RANDOM_KERNELS, d_state, dtype=torch.float64, generator=generator)
    # The kernel of a random readout has this standard deviation.
    spread = kernels.square().sum(0).sqrt()
    # All kernels at once start with a spike, which would flatten everything else.
    scale = spread[len(t) // 40 : -len(t) // 40].max()
    axes.fill_between(
        t, -spread / scale, spread / scale, color=_SHADE, alpha=0.45, linewidth=0, label="one standard deviation"
    )
    for index, kernel in enumerate(C @ kernels / scale):
        axes.plot(t, kernel, color=_colours(RANDOM_KERNELS)[index], linewidth=1.0)
    axes.set(ylim=(-3.2, 3.2))
    _finish_time_panel(axes, t)
    legend(axes, 0.15, 6)
    caption(
        axes,
        r"Random S4 kernels $C e^{tA}B$",
        f"{RANDOM_KERNELS} draws of C, relative to the largest standard deviation",
    )


def _how_exact(name: str) -> str:
    """How the closed form p_n ω relates to the kernels, in words."""
    if name in ("legs", "foud", "lagt", "glagt", "chebt"):
        return r"dotted: their closed form"
    return r"dotted: their limit as $N \to \infty$"


def _closed_kernels(name: str, d_state: int, t: Tensor) -> Tensor:
    closed = ssm.basis_functions(name, d_state, t) * ssm.measure(name, t)
    if name == "lmu":
        closed = closed * (2 * torch.arange(d_state)[:, None] + 1)
    return closed


def _duration(name: str) -> float:
    window = ssm.BASES[name].window
    if name == _DIVERGING:
        return window
    return _LONG[name] if math.isinf(window) else 2 * window


def _kernel_times(name: str) -> Tensor:
    """Evenly spaced, and none of them at an end of the window, where functions may be infinite."""
    window = ssm.BASES[name].window
    end = _KERNELS_LONG[name] if math.isinf(window) else window * (1 if name == _DIVERGING else 1.25)
    return (torch.arange(800, dtype=torch.float64) + 0.5) * (end / 800)


def _accuracy(memory: Memory, samples: int) -> str:
    error = memory.rmse(samples)
    if not error < 1e3:
        return f"diverged, RMSE {error:.0e}: rounding errors grow; take a smaller N"
    return f"RMSE {error:.2g} of the signal's rms, under the measure"


def _shade(axes: "Axes", times: np.ndarray, weight: np.ndarray, top: float, label: str = "measure"):
    return axes.fill_between(
        times,
        weight / top * _SHADE_HEIGHT,
        color=_SHADE,
        alpha=0.55,
        linewidth=0,
        transform=axes.get_xaxis_transform(),
        label=label,
        zorder=0,
    )


def _finish_time_panel(axes: "Axes", times: Tensor) -> None:
    axes.set_xlim(0, float(times[-1]))
    axes.axhline(0, color=GRID, linewidth=0.8, zorder=0.5)
    axes.set_xlabel("t, how long ago", fontsize=9, color=MUTED)
    plain(axes)


def _time_label(scaled: bool) -> str:
    return "time, in units of the basis" + (" (scaled: it covers the whole past, evenly)" if scaled else "")


def _colours(count: int) -> list[tuple[float, ...]]:
    return [ramp(index / max(count - 1, 1)) for index in range(count)]
