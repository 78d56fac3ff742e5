"""CPU time of the front end on one core for a 10 s clip, against the reference, `torchaudio.compliance.kaldi.fbank`.

python benchmarks/front_end.py
"""

from __future__ import annotations

import torch
from peers.comparison import arguments, interleave, one_core, print_machine, print_medians, print_ratio
from torchaudio.compliance import kaldi

from ast_core.audio.fbank import Fbank
from ast_core.config import FrontEndConfig

GOAL = 3.5
ROUNDS = 60
RATE_HZ, SECONDS = 16_000, 10


def main() -> None:
    """Time both on one clip of noise, and compare their results."""
    args = arguments(__doc__).parse_args()
    one_core()
    config = FrontEndConfig()
    fbank = Fbank(config)
    noise_N = 0.1 * torch.randn(RATE_HZ * SECONDS, generator=torch.Generator().manual_seed(0))

    def reference() -> torch.Tensor:
        wave_1N = (noise_N - noise_N.mean())[None]
        return kaldi.fbank(
            wave_1N, htk_compat=True, sample_frequency=RATE_HZ, use_energy=False, window_type=config.window,
            num_mel_bins=config.num_mel_bins, dither=0.0, frame_shift=config.frame_shift_ms,
        )  # fmt: skip

    seconds = interleave({"torchaudio": reference, "ours": lambda: fbank(noise_N)}, 3 if args.quick else ROUNDS)
    print_medians(seconds, f"CPU time of a {SECONDS} s clip")
    print_ratio(seconds, "torchaudio", goal=GOAL)
    print(f"largest difference {float((fbank(noise_N) - reference()).abs().max()):.1e}; parity.py says more")
    print_machine()


if __name__ == "__main__":
    main()
