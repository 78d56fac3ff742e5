"""Differences of the front end from torchaudio and from transformers' extractor, and of an ONNX export from its bundle.

python benchmarks/parity.py [--audio FOLDER] [--model BUNDLE]
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from peers.comparison import arguments, one_core, print_machine, verdict
from peers.made_data import recordings, sound
from peers.published_loader import MEAN, STD, load
from torchaudio.compliance import kaldi

from ast_core.audio.fbank import Fbank, fit_length
from ast_core.config import FrontEndConfig
from ast_core.evaluation.predictor import Predictor
from ast_core.weights.bundle import Bundle
from ast_core.weights.onnx_export import export_onnx

RATE_HZ = 16_000
MOST, MADE = 400, 40
GOALS = {"largest": 2e-2, "99.99 %": 2e-3, "mean": 1e-5}
"""Largest differences, about Kaldi's rounding: torchaudio differs from float64 by up to 5e-3."""


def compute_reference(wave_N: torch.Tensor) -> torch.Tensor:
    """Return torchaudio's log-mel [T, M]."""
    return kaldi.fbank(
        (wave_N - wave_N.mean())[None], htk_compat=True, sample_frequency=RATE_HZ, use_energy=False,
        window_type="hanning", num_mel_bins=128, dither=0.0, frame_shift=10,
    )  # fmt: skip


def print_difference(what: str, differences: Sequence[torch.Tensor], goals: dict[str, float]) -> None:
    """Print the largest, the 99.99th percentile and the mean absolute difference, with their goals."""
    error = torch.cat([difference.flatten().abs() for difference in differences]).double()
    sorted_error = error.sort().values
    values = {
        "largest": float(sorted_error[-1]),
        "99.99 %": float(sorted_error[int(0.9999 * (len(error) - 1))]),
        "mean": float(error.mean()),
    }
    parts = [
        f"{name} {value:.2g}" + (f" (goal {goals[name]:g}: {verdict(value <= goals[name])})" if name in goals else "")
        for name, value in values.items()
    ]
    print(f"difference from {what}: {', '.join(parts)}")


def compare_front_end(waves: list[torch.Tensor]) -> None:
    """Compare log-mel with torchaudio's, then normalised inputs with those of transformers' extractor."""
    fbank = Fbank(FrontEndConfig())
    own = [fbank(wave_N) for wave_N in waves]
    print(f"{sum(len(fbank_TM) for fbank_TM in own)} frames of {len(waves)} clips")
    pairs = zip(own, waves, strict=True)
    print_difference("torchaudio, log-mel", [fbank_TM - compute_reference(wave_N) for fbank_TM, wave_N in pairs], GOALS)
    try:
        from transformers import ASTFeatureExtractor  # noqa: PLC0415, an optional peer
    except ImportError:
        print("transformers is not installed: its extractor is not compared")
        return
    extractor = ASTFeatureExtractor()
    differences = []
    for fbank_TM, wave_N in zip(own, waves, strict=True):
        normal_TM = (fit_length(fbank_TM, 1024) - MEAN) / (2 * STD)
        theirs = extractor((wave_N - wave_N.mean()).numpy(), sampling_rate=RATE_HZ, return_tensors="pt")
        differences.append(normal_TM - theirs["input_values"][0])
    print_difference("transformers' extractor, normalised", differences, {})


def compare_onnx(folder: Path, waves: list[torch.Tensor]) -> None:
    """Compare the probabilities of a bundle with those of its ONNX export under onnxruntime."""
    import onnxruntime  # noqa: PLC0415, an optional peer

    bundle = Bundle.load(folder)
    predictor = Predictor(bundle)
    longest = int(bundle.front_end.target_frames * bundle.front_end.frame_shift_ms * RATE_HZ / 1000)
    differences = []
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "bundle.onnx"
        export_onnx(bundle, path)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for wave_N in waves:
            samples_N = wave_N[:longest].numpy()  # the graph takes one window
            theirs_BC = session.run(None, {"waveform": samples_N[None]})[0]
            differences.append(torch.from_numpy(predictor.probabilities(samples_N) - theirs_BC[0]))
    print_difference("the ONNX export's probabilities", differences, {"largest": 1e-3})


def main() -> None:
    """Compare on a folder of recordings, or on synthetic sounds."""
    parser = arguments(__doc__)
    parser.add_argument("--audio", type=Path, help="folder of recordings to use instead of synthetic sounds")
    parser.add_argument("--model", type=Path, help="bundle to export to ONNX and compare")
    args = parser.parse_args()
    one_core()
    if args.audio:
        waves = [load(path)[0] for path in recordings(args.audio, 3 if args.quick else MOST)]
    else:
        waves = [torch.from_numpy(sound(seed, RATE_HZ)[:, 0]) for seed in range(2 if args.quick else MADE)]
    compare_front_end(waves)
    if args.model:
        compare_onnx(args.model, waves)
    print_machine()


if __name__ == "__main__":
    main()
