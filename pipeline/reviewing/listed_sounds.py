"""The recordings of a run's data set, listed when the report first needs one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from ast_core.dataset.clips import Clip, Manifest
from ast_core.dataset.problems import shorten
from ast_core.errors import UserError
from ast_core.redaction import without_secrets
from pipeline.reviewing.clip_players import LONGEST_S, Player, id_of, make_players
from pipeline.run_folder.layout import RunFolder
from pipeline.run_folder.listed_clips import find_source, list_clips

if TYPE_CHECKING:
    from pipeline.cli.stages import ReportSettings


class ListedSounds:
    """The clips of a data set by id, and players of them.

    Args:
        settings: of `report`.
        run: folder of the run.
    """

    def __init__(self, settings: ReportSettings, run: RunFolder) -> None:
        self._settings = settings
        self._run = run

    @cached_property
    def source(self) -> str:
        """Folder, file or URI of the data set; UserError without one."""
        return find_source(self._settings.data, self._run)

    @cached_property
    def manifest(self) -> Manifest:
        """The data set, with the splits of the run's shards.

        Raises:
            UserError: the data set does not exist or has bad rows.
        """
        return list_clips(self._settings.data, self.source, self._run.shards, self._run.archive_listings)[0]

    @cached_property
    def _clips(self) -> dict[str, Clip]:
        return {id_of(clip): clip for clip in self.manifest.clips}

    def make_players(self, names: Sequence[str], sample_rate_hz: int, longest_s: float = LONGEST_S) -> list[Player]:
        """Return players as `clip_players.make_players`; if the data set cannot be listed, they say why."""
        if not self._settings.players:
            return [Player()] * len(names)
        try:
            return make_players(names, self._clips, self.manifest.audio_column, sample_rate_hz, longest_s)
        except (UserError, OSError) as error:
            return [Player(note=f"No player: {shorten(without_secrets(str(error)), 300)}")] * len(names)
