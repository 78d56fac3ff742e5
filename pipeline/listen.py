"""Listen to a microphone, a pipe or a recording, and show the most probable classes of the last seconds.

ast-pipeline listen --model work/demo/bundles/ensemble
ffmpeg -i INPUT -f s16le -ac 1 -ar 16000 - | ast-pipeline listen - --model work/demo/bundles/ensemble

The model's window slides over the sound. Ctrl-C ends, and shows how far the results were behind.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # the flags are parsed before the imports below, which take seconds
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from pipeline.cli.main import main as start

    start(["listen", *sys.argv[1:]])
    sys.exit()


from rich.console import Console

from ast_core.errors import ClipError
from ast_core.evaluation.predictor import Predictor
from ast_core.weights.bundle import Bundle
from pipeline.cli.command_line import parse_settings
from pipeline.cli.listen_settings import MICROPHONE, ListenSettings
from pipeline.cli.program import run_stage
from pipeline.cli.sigterm import sigterm_received
from pipeline.listening.listen_display import open_display
from pipeline.listening.local_listener import LagSummary, LocalListener
from pipeline.listening.sound_sources import describe_refusal, open_sound
from pipeline.scoring.device import choose_device
from pipeline.tracking.model_choice import open_model_folder

BEHIND_HOPS = 3
"""Hops that a model may be behind before `listen` says so."""


def listen(settings: ListenSettings) -> LagSummary:
    """Show the probabilities of each window until the sound ends, or Ctrl-C.

    Returns:
        How far the results were behind the sound.

    Raises:
        UserError: the model, the source or the hop cannot be used.
    """
    with open_model_folder(settings.model, settings.tracking) as folder:
        bundle = Bundle.load(folder)
    predictor = Predictor(bundle, choose_device(settings.gpus))
    listener = LocalListener(predictor, settings.hop_s)
    try:
        _show_all(settings, listener, bundle)
    except ClipError as error:
        raise describe_refusal(error, settings.source) from error
    except BrokenPipeError:  # the program that reads the lines ended, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        if sigterm_received():
            raise
    if listener.lags.windows:
        _say(f"{listener.heard_s:.1f} s heard, {listener.lags.windows} windows. {listener.lags.describe()}")
    return listener.lags


def _show_all(settings: ListenSettings, listener: LocalListener, bundle: Bundle) -> None:
    """Show each result, and once that the model is too slow."""
    said, lags = False, listener.lags
    arrives_by_itself = settings.real_time or settings.source == MICROPHONE
    with (
        open_sound(settings, bundle.front_end.sample_rate_hz) as reader,
        open_display(bundle.labels, settings.top_k, lags.hop_s, settings.json_lines) as show,
    ):
        for heard in listener.listen(reader):
            show(heard)
            if arrives_by_itself and not said and heard.lag_s > BEHIND_HOPS * lags.hop_s + 1:
                said = True
                _say(f"The model is {heard.lag_s:.1f} s behind the sound; give a longer --hop-s or a smaller model.")


def _say(sentence: str) -> None:
    """Print a sentence on stderr, because stdout may be read by a program."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(sentence, markup=False)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage as a program."""
    run_stage(lambda: listen(parse_settings(ListenSettings, __doc__, argv)))
