"""The filterbank against torchaudio's Kaldi, call by call."""

from __future__ import annotations

import pytest
import torch
from torchaudio.compliance import kaldi  # type: ignore[import-untyped]

from ast_core.audio.fbank import Fbank, fit_length
from ast_core.config import FrontEndConfig, Window
from ast_core.errors import ClipError, UserError


def reference(wave_N: torch.Tensor, config: FrontEndConfig) -> torch.Tensor:
    result: torch.Tensor = kaldi.fbank(
        (wave_N - wave_N.mean())[None],
        htk_compat=True,
        sample_frequency=config.sample_rate_hz,
        use_energy=False,
        window_type=config.window,
        num_mel_bins=config.num_mel_bins,
        dither=0.0,
        frame_length=config.frame_length_ms,
        frame_shift=config.frame_shift_ms,
    )
    return result


def signals(rate: int, seconds: float) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    time = torch.arange(int(rate * seconds)) / rate
    noise = torch.randn(len(time), generator=generator)
    harmonics = sum((torch.sin(2 * torch.pi * 120 * n * time) / n for n in range(1, 20)), torch.zeros_like(time))
    return {
        "noise": 0.1 * noise,
        "faint": 1e-4 * noise,
        "offset": 0.1 * noise + 0.3,
        "tone": 0.5 * torch.sin(2 * torch.pi * 440 * time) + 1e-3 * noise,
        "speech-like": 0.2 * harmonics * torch.sin(2 * torch.pi * 3 * time).square() + 1e-3 * noise,
    }


@pytest.mark.parametrize("window", ["hanning", "hamming"])
def test_equals_torchaudio_to_rounding(window: Window) -> None:
    config = FrontEndConfig(window=window)
    fbank = Fbank(config)
    difference = torch.cat(
        [
            (fbank(wave_N) - reference(wave_N, config)).abs().flatten()
            for seconds in (1.0, 5.0, 10.0)
            for wave_N in signals(config.sample_rate_hz, seconds).values()
        ]
    )
    assert difference.max() < 2e-2
    assert (difference < 2e-3).float().mean() >= 0.9999
    assert difference.mean() < 1e-5


def hostile(samples: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    noise = torch.randn(samples, generator=generator)
    place = torch.arange(samples)
    impulse = torch.zeros(samples)
    impulse[samples // 2] = 1.0
    return {
        "impulse": impulse,
        "steps": torch.sign(torch.sin(2 * torch.pi * 50 * place / 16_000)),
        "nyquist": 1.0 - 2.0 * (place % 2),
        "pure tone at full scale": torch.sin(2 * torch.pi * 1000 * place / 16_000),
        "clipped": (5 * noise).clamp(-1, 1),
        "offset alone": torch.full((samples,), 0.7),
        "denormal": 1e-38 * noise,
        "one bit of 16": torch.round(noise) / 32_768,
        "loud then silent": torch.where(place < samples // 2, noise.clamp(-1, 1), torch.zeros(samples)),
    }


@pytest.mark.parametrize("name", sorted(hostile(400)))
@pytest.mark.parametrize("window", ["hanning", "hamming"])
def test_hostile_signals_equal_torchaudio(name: str, window: Window) -> None:
    config = FrontEndConfig(window=window)
    wave_N = hostile(32_000)[name]
    difference = (Fbank(config)(wave_N) - reference(wave_N, config)).abs()
    assert difference.max() < 2e-2
    assert (
        difference.mean() < 3e-4
    )  # next to a tone at full scale, other bins hold only rounding errors, just above the floor


@pytest.mark.parametrize("samples", [400, 401, 559, 560, 561, 719, 720, 80_239, 80_240, 160_000])
def test_lengths_about_a_frame_and_a_chunk(samples: int) -> None:
    config = FrontEndConfig()
    wave_N = signals(16_000, 10.0)["speech-like"][:samples]
    torch.testing.assert_close(Fbank(config)(wave_N), reference(wave_N, config), atol=2e-2, rtol=0)


def test_ten_minutes_equal_torchaudio_wherever_one_looks() -> None:
    config = FrontEndConfig()
    minute_N = torch.cat([signals(16_000, 12.0)[name] for name in ("noise", "tone", "faint", "speech-like", "offset")])
    long_N = minute_N.repeat(10)
    long_TM = Fbank(config)(long_N)
    assert long_TM.shape == (59_998, 128)
    centred_N = long_N - long_N.mean()
    for frame in (0, 20_000, 40_123, 59_998 - 500):
        piece_1N = centred_N[None, frame * 160 : frame * 160 + 499 * 160 + 400]
        expected_TM = kaldi.fbank(
            piece_1N, htk_compat=True, sample_frequency=16_000, use_energy=False, window_type="hanning",
            num_mel_bins=128, dither=0.0, frame_shift=10,
        )  # fmt: skip
        torch.testing.assert_close(long_TM[frame : frame + 500], expected_TM, atol=2e-2, rtol=0)


@pytest.mark.parametrize(("rate", "mels", "shift_ms"), [(8_000, 40, 10.0), (22_050, 64, 12.5), (44_100, 128, 10.0)])
def test_any_rate_mel_count_and_hop(rate: int, mels: int, shift_ms: float) -> None:
    config = FrontEndConfig(sample_rate_hz=rate, num_mel_bins=mels, frame_shift_ms=shift_ms)
    for wave_N in signals(rate, 1.3).values():
        expected = reference(wave_N, config)
        assert Fbank(config)(wave_N).shape == expected.shape
        torch.testing.assert_close(Fbank(config)(wave_N), expected, atol=2e-2, rtol=0)


def test_a_batch_is_its_clips() -> None:
    waves_BN = torch.stack(list(signals(16_000, 2.0).values()))
    fbank = Fbank(FrontEndConfig())
    torch.testing.assert_close(fbank(waves_BN), torch.stack([fbank(wave_N) for wave_N in waves_BN]), atol=1e-3, rtol=0)


def test_silence_is_the_floor() -> None:
    torch.testing.assert_close(Fbank(FrontEndConfig())(torch.zeros(16_000)), torch.full((98, 128), -15.942385))


def test_the_waveform_is_not_changed() -> None:
    wave_N = torch.randn(16_000)
    before = wave_N.clone()
    Fbank(FrontEndConfig())(wave_N)
    assert torch.equal(wave_N, before)


@pytest.mark.parametrize("samples", [0, 1, 399])
def test_shorter_than_a_window_is_the_clips_fault(samples: int) -> None:
    with pytest.raises(ClipError, match=f"fbank: {samples} samples are less than one window of 400"):
        Fbank(FrontEndConfig())(torch.zeros(samples))


def test_exactly_one_window_is_one_frame() -> None:
    assert Fbank(FrontEndConfig())(torch.zeros(400)).shape == (1, 128)


def test_a_hop_of_no_sample_is_refused() -> None:
    with pytest.raises(UserError, match="give longer ones"):
        Fbank(FrontEndConfig(sample_rate_hz=1_000, frame_shift_ms=0.5))


def test_fit_length_pads_with_zero_and_cuts_the_end() -> None:
    fbank_TM = torch.randn(5, 4)
    padded = fit_length(fbank_TM, 7)
    assert torch.equal(padded[:5], fbank_TM)
    assert not padded[5:].any()
    assert torch.equal(fit_length(fbank_TM, 3), fbank_TM[:3])


def test_the_number_of_threads_changes_no_bit_of_a_shard() -> None:
    tone_N = 0.5 * torch.sin(torch.arange(90_000) * 0.17) + 0.01  # most bins are near silence
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(Fbank(FrontEndConfig())(tone_N).half())
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(own, found[0]) for own in found)
