"""Error of mixup on stored filterbanks, in the power domain and linear in log-mel, against mixing the waveforms.

python benchmarks/mixup.py [--audio FOLDER]
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from peers.comparison import arguments, one_core, print_machine
from peers.made_data import recordings, sound
from peers.published_loader import load

from ast_core.audio.fbank import Fbank
from ast_core.config import FrontEndConfig
from ast_core.training.augment import mix_power

PAIRS = 300


def load_waveforms(folder: Path | None, clips: int) -> list[torch.Tensor]:
    """Return recordings of a folder, or synthetic sounds, float32 [N], with their means removed."""
    rate_hz = FrontEndConfig().sample_rate_hz
    if folder is None:
        gains = 10 ** np.random.default_rng(0).uniform(-2, 0, clips)  # levels of recordings differ by up to 40 dB
        waves = [torch.from_numpy(sound(seed, rate_hz, 2.0)[:, 0]) * gain for seed, gain in enumerate(gains)]
    else:
        waves = [load(path)[0] for path in recordings(folder, clips)]
    return [wave_N - wave_N.mean() for wave_N in waves]


def compare_mixtures(waves: list[torch.Tensor], pairs: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the differences from the log-mel of mixed waveforms, [T, M], for each pair: power domain, then linear."""
    rng = np.random.default_rng(0)
    fbank = Fbank(FrontEndConfig())
    for _ in range(pairs):
        own_N, other_N = (waves[index] for index in rng.choice(len(waves), 2, replace=False))
        length = min(len(own_N), len(other_N))
        share = float(rng.beta(10, 10))
        # Shards store clips as float16, so mixtures start from rounded values.
        own_TM, other_TM = (fbank(wave_N[:length]).half().float() for wave_N in (own_N, other_N))
        mixed_TM = fbank(share * own_N[:length] + (1 - share) * other_N[:length])
        power_TM = mix_power(own_TM[None], other_TM[None], torch.tensor([share]))[0]
        yield power_TM - mixed_TM, share * own_TM + (1 - share) * other_TM - mixed_TM


def main() -> None:
    """Print mean and median of the absolute error, and the bias, of both ways to mix."""
    parser = arguments(__doc__)
    parser.add_argument("--audio", type=Path, help="folder of recordings to use instead of synthetic sounds")
    args = parser.parse_args()
    one_core()
    pairs = 8 if args.quick else PAIRS
    waves = load_waveforms(args.audio, pairs)
    found = zip(*compare_mixtures(waves, pairs), strict=True)
    means = []
    for name, differences in zip(("power domain", "linear in log-mel"), found, strict=True):
        error = torch.cat([difference_TM.flatten() for difference_TM in differences]).double()
        means.append(float(error.abs().mean()))
        print(f"{name}: mean error {means[-1]:.3g}, median {float(error.abs().median()):.2g}, ", end="")
        print(f"bias {float(error.mean()):+.2g} log-mel; {pairs} pairs")
    print(f"ratio {means[1] / means[0]:.3g}: mean error of linear against power domain")
    print_machine()


if __name__ == "__main__":
    main()
