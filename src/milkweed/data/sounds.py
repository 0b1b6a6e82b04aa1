"""Recordings: read from files, mixed to as many channels as are wanted, resampled."""

from math import gcd
from pathlib import Path
from typing import BinaryIO

import numpy as np

SUFFIXES = (".wav", ".flac", ".ogg", ".aiff", ".aif", ".mp3")


def read_sound(file: Path | BinaryIO) -> tuple[np.ndarray, int]:
    """Read a recording, (samples, channels) float32, and its sample rate in Hz."""
    try:
        import soundfile
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('recordings are read by soundfile: pip install "milkweed[data]"') from error
    try:
        amplitudes, rate = soundfile.read(file, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError, OSError) as error:
        raise ValueError(f"{file} is no recording that can be read: {error}; remove it or replace it") from error
    if not len(amplitudes):
        raise ValueError(f"{file} has no samples; remove it or replace it")
    if not np.isfinite(amplitudes).all():
        raise ValueError(f"{file} holds NaN or infinity; remove it or replace it")
    return amplitudes, int(rate)


def mixed(name: object, amplitudes: np.ndarray, channels: int) -> np.ndarray:
    """Amplitudes (samples, channels) with as many channels as are wanted: their mean for one."""
    if channels == 1:
        return amplitudes.mean(1, keepdims=True)
    if amplitudes.shape[1] != channels:
        raise ValueError(
            f"{name} has {amplitudes.shape[1]} channels, and data.channels={channels}; with data.channels=1 their "
            "mean is read"
        )
    return amplitudes


def resampled(amplitudes: np.ndarray, rate: int, to: int) -> np.ndarray:
    """Resample (samples, channels) with a filter against aliases, by the ratio of two whole numbers."""
    if rate == to:
        return amplitudes
    from scipy.signal import resample_poly

    common = gcd(rate, to)
    return resample_poly(amplitudes, to // common, rate // common, axis=0).astype(np.float32)
