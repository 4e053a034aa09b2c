"""Sound from .wav files, and two ears: frames of log-mel energies, and a cochlea that spikes."""

from __future__ import annotations

import io
import math
import warnings
from pathlib import Path

import numpy as np

from spikebridge.data.files import FRESH_COPY, DataError, read_bytes

LONGEST_S = 60
RATES_HZ = (1_000, 384_000)
LOWEST_HZ, HIGHEST_SHARE = 80.0, 0.45
"""Of the bands: the lowest frequency, and the highest as a share of the rate."""
WINDOW_MS = 25.0
FLOOR = 1e-6
TAU_MS = 20.0
THRESHOLD = 2.0


def read_wav(path: Path, rate_hz: int) -> np.ndarray:
    """Samples (n,) float32 in [-1, 1] at a rate, channels averaged.

    PCM of 8 to 32 bits and floats, read by scipy; another rate is resampled by a polyphase filter.
    Raises DataError for what is damaged, empty, longer than a minute or not finite.
    """
    from scipy.io import wavfile
    from scipy.signal import resample_poly

    # From memory, so that a head that speaks of more than is there takes no room for it.
    content = io.BytesIO(read_bytes(path, "a .wav file"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)
            # A torn file is a mere warning to scipy; other warnings are of chunks beside the sound.
            warnings.filterwarnings("error", "Reached EOF", wavfile.WavFileWarning)
            rate, samples = wavfile.read(content)
    except Exception as error:  # its parser stumbles in many ways
        actual = f"one that cannot be read ({error or type(error).__name__})"
        raise DataError(path, "a whole .wav file of PCM or floats", actual, FRESH_COPY) from error
    if not RATES_HZ[0] <= rate <= RATES_HZ[1]:
        low, high = RATES_HZ
        raise DataError(path, f"{low:,} to {high:,} samples a second", f"{rate:,}", FRESH_COPY)
    if not samples.size or len(samples) > LONGEST_S * rate:
        actual = f"{len(samples) / rate:.1f} s" if samples.size else "no sample"
        raise DataError(path, f"sound of up to {LONGEST_S} s", actual, "cut it, or leave it out")
    sound = _in_range(samples)
    if not np.isfinite(sound).all():
        raise DataError(path, "samples that are finite", "nan or inf", FRESH_COPY)
    sound = sound.mean(1) if sound.ndim == 2 else sound
    if rate != rate_hz:
        shared = math.gcd(rate, rate_hz)
        sound = resample_poly(sound, rate_hz // shared, rate // shared)
    return sound.astype(np.float32)


def _in_range(samples: np.ndarray) -> np.ndarray:
    if samples.dtype.kind == "f":
        return samples.astype(np.float64)
    if samples.dtype == np.uint8:  # of 8 bits, silence is 128
        return (samples.astype(np.float64) - 128) / 128
    return samples / -float(np.iinfo(samples.dtype).min)  # 24 bits come as the upper ones of 32


def _mel(hz: np.ndarray | float) -> np.ndarray:
    return 2595 * np.log10(1 + np.asarray(hz) / 700)


def edges_hz(bands: int, rate_hz: int) -> np.ndarray:
    """(bands + 2,) frequencies at equal distances on the mel scale: band k reaches from k to k + 2.

    Source: O'Shaughnessy 1987, mel = 2595 log10(1 + f / 700).
    """
    places = np.linspace(_mel(LOWEST_HZ), _mel(HIGHEST_SHARE * rate_hz), bands + 2)
    return 700 * (10 ** (places / 2595) - 1)


def log_mel(sound: np.ndarray, rate_hz: int, bands: int, step_ms: float) -> np.ndarray:
    """Log energies (T, bands) float32 of windows of 25 ms, a step apart, in triangular bands."""
    hop, width = _per(step_ms, rate_hz), _per(WINDOW_MS, rate_hz)
    steps = -(-len(sound) // hop)
    padded = np.pad(sound, (0, width))[: (steps - 1) * hop + width]
    frames = np.lib.stride_tricks.sliding_window_view(padded, width)[::hop]
    # As fine as the narrowest band: one without a frequency in it would hear nothing.
    narrowest = float(np.diff(edges_hz(bands, rate_hz)).min())
    size = max(width, math.ceil(rate_hz / narrowest))
    power = np.abs(np.fft.rfft(frames * np.hanning(width), size)) ** 2 / width
    return np.log(power @ _triangles(bands, rate_hz, size) + FLOOR).astype(np.float32)


def _triangles(bands: int, rate_hz: int, size: int) -> np.ndarray:
    """Weights (size // 2 + 1, bands) of frequencies in bands."""
    low, middle, high = (edges_hz(bands, rate_hz)[k : k + bands] for k in range(3))
    hz = np.fft.rfftfreq(size, 1 / rate_hz)[:, None]
    rising, falling = (hz - low) / (middle - low), (high - hz) / (high - middle)
    return np.minimum(rising, falling).clip(min=0)


def currents(sound: np.ndarray, rate_hz: int, bands: int, step_ms: float) -> np.ndarray:
    """What hair cells send (T, bands) float32: band-pass, half-wave, mean of a step, square root.

    Band k is a Butterworth filter of two poles between the edges that `edges_hz` gives it.  The
    sound has unit power at first, so that loudness says nothing.
    """
    from scipy.signal import butter, sosfilt

    hop, edges = _per(step_ms, rate_hz), edges_hz(bands, rate_hz)
    steps = -(-len(sound) // hop)
    power = float(np.square(sound, dtype=np.float64).mean())
    even = np.pad(sound / math.sqrt(power + FLOOR), (0, steps * hop - len(sound)))
    sent = np.empty((steps, bands), np.float32)
    for band in range(bands):
        sections = butter(1, edges[[band, band + 2]], "bandpass", fs=rate_hz, output="sos")
        rectified = sosfilt(sections, even).clip(min=0)
        sent[:, band] = np.sqrt(rectified.reshape(steps, hop).mean(1))
    return sent


def spikes(sent: np.ndarray, level: np.ndarray, step_ms: float) -> np.ndarray:
    """Spikes (T, bands) float32, 0 or 1, of leaky integrate-and-fire cells that currents drive.

    v' = exp(-step / 20 ms) v + current / level; where v' reaches 2, it spikes and loses 2.

    Args:
        sent: (T, bands) currents.
        level: (bands,) mean current of the training recordings, so that all bands fire alike.
        step_ms: of a step.
    """
    keep, v = math.exp(-step_ms / TAU_MS), np.zeros(sent.shape[1])
    fired = np.zeros(sent.shape, np.float32)
    for t, drive in enumerate(sent / level):
        v = keep * v + drive
        fired[t] = v >= THRESHOLD
        v -= THRESHOLD * fired[t]
    return fired


def _per(ms: float, rate_hz: int) -> int:
    return max(1, round(ms * rate_hz / 1000))
