"""The front end against `torchaudio.compliance.kaldi.fbank`, the reference: CPU time of a 10 s clip on one core.

python benchmarks/front_end.py
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable

import torch
from torchaudio.compliance import kaldi

from ast_core.config import FrontEndConfig
from ast_core.fbank import Fbank

ROUNDS = 60
RATE_HZ, SECONDS = 16_000, 10


def cpu_ms(call: Callable[[], object]) -> float:
    """CPU time of one call."""
    started = time.process_time()
    call()
    return 1000 * (time.process_time() - started)


def main() -> None:
    """Interleave both, so that what slows the machine slows both; print medians, their ratio, and its spread."""
    torch.set_num_threads(1)
    config = FrontEndConfig()
    fbank = Fbank(config)
    noise_N = 0.1 * torch.randn(RATE_HZ * SECONDS, generator=torch.Generator().manual_seed(0))

    def peer() -> torch.Tensor:
        wave_1N = (noise_N - noise_N.mean())[None]
        return kaldi.fbank(
            wave_1N, htk_compat=True, sample_frequency=RATE_HZ, use_energy=False, window_type=config.window,
            num_mel_bins=config.num_mel_bins, dither=0.0, frame_shift=config.frame_shift_ms,
        )  # fmt: skip

    difference = (fbank(noise_N) - peer()).abs()
    pairs = [(cpu_ms(peer), cpu_ms(lambda: fbank(noise_N))) for _ in range(ROUNDS)]
    ratios = sorted(theirs / ours for theirs, ours in pairs)
    theirs, ours = (statistics.median(pair[side] for pair in pairs) for side in (0, 1))
    print(f"torchaudio {theirs:.2f} ms, ours {ours:.2f} ms a 10 s clip; medians of {ROUNDS} interleaved rounds")
    low, middle, high = (ratios[len(ratios) * q // 4] for q in (1, 2, 3))
    print(f"ratio {middle:.2f} (quartiles {low:.2f} to {high:.2f}); largest difference {float(difference.max()):.1e}")
    print(f"one core of {platform.processor() or platform.machine()}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
