"""Make the timelines, pictures and events of recordings while `predict` goes through them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from ast_core.audio.decoder import Decoder, Recording
from ast_core.dataset.clips import Clip
from ast_core.evaluation.event_windows import detect_events
from ast_core.evaluation.predictor import Predictor
from pipeline.cli.stages import PredictSettings
from pipeline.reporting.event_files import EventWriter, open_event_files, read_rule
from pipeline.reporting.predictions import Labelling
from pipeline.reporting.recording_names import name_recordings


class RecordingOutputs:
    """What the user asked for of each recording besides its row.

    Args:
        settings: settings of `predict`.
        predictor: model on its device.
        labelling: rule that chooses the labels.
        names: name of the files of each recording.
        events: writer of events; None if the user asked for none.
    """

    def __init__(
        self,
        settings: PredictSettings,
        predictor: Predictor,
        labelling: Labelling,
        names: Mapping[Path, Path],
        events: EventWriter | None,
    ) -> None:
        self._settings = settings
        self._predictor = predictor
        self._labelling = labelling
        self._names = names
        self._events = events
        self._decoder = Decoder()

    def add(self, clip: Clip) -> None:
        """Draw a recording, and write its events last: an error before them refuses the recording without any."""
        path = Path(clip.clip_id)
        recording = Recording(path, self._predictor.bundle.front_end.sample_rate_hz, self._decoder)
        if self._settings.timeline or self._settings.attention:
            from pipeline.reporting import recording_pictures  # noqa: PLC0415  # matplotlib: 35 MB

            recording_pictures.write_pictures(
                self._settings, self._names[path], self._predictor, recording, self._labelling
            )
        if self._events is not None:
            rule = read_rule(self._settings)
            self._events.add(str(path), detect_events(self._predictor, recording, self._settings.hop_s, rule))

    def refuse(self, clip: Clip, error: str) -> None:
        """Write a refused recording's error among the events."""
        if self._events is not None:
            self._events.refuse(clip.clip_id, error)

    def show(self) -> None:
        """Print the number of events."""
        if self._events is not None:
            text = f"{self._events.count} events in {self._settings.events}"
            Console(soft_wrap=True, highlight=False).print(text, markup=False)


@contextlib.contextmanager
def open_outputs(
    settings: PredictSettings, predictor: Predictor, labelling: Labelling, files: Sequence[Path]
) -> Iterator[RecordingOutputs]:
    """Yield the outputs of some recordings; the events are committed at the end."""
    names = name_recordings(files)
    with contextlib.ExitStack() as opened:
        events: EventWriter | None = None
        if settings.events is not None:
            highest_hz = predictor.bundle.front_end.sample_rate_hz / 2
            events = open_event_files(settings, {str(path): name for path, name in names.items()}, highest_hz)
            opened.enter_context(events)
        yield RecordingOutputs(settings, predictor, labelling, names, events)
