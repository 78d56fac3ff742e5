"""Points of a study that Optuna's TPE draws through Ray Tune, and the journal that a later launch continues from.

TPE has state: a draw depends on all draws and scores before it. The journal lists them in order. A launch shows it to
a new sampler with the same seed, which then draws what the ended one would have drawn. Nothing is pickled.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ray.tune.search.optuna import OptunaSearch
from rich.console import Console

from ast_core.errors import UserError, require
from ast_core.serialization import from_dict, to_dict
from ast_core.storage.json_files import read_hashed_json, sha256_of_json, write_hashed_json
from tune.studies import TPE, TPE_STARTUP, Variant, is_folder_name, name_point
from tune.study_space import TpeSpace
from tune.trial import SCORE

JOURNAL = "tpe.json"
"""Name of the journal in a study's folder."""


@dataclass(frozen=True)
class Event:
    """One line of the journal."""

    point: int
    """Number of the point, counted from 0."""
    kind: Literal["drawn", "scored"]
    drawn: dict[str, float] = field(default_factory=dict)
    """Numbers that TPE drew, by recipe key; of a choice its number."""
    score: float | None = None
    """Mean score of the point's trials; None if all of them failed."""


@dataclass(frozen=True)
class Journal:
    """The content of `tpe.json`."""

    identity: str
    """Hash of the ranges, the recipe and the data. A journal with another one is not continued."""
    events: tuple[Event, ...] = ()


class TpeDraws:
    """TPE's points of a study, which learn from the scores of the points before.

    A point that TPE draws again is no new variant; it gets the score of the first one.

    Args:
        space: ranges, number of points and seed.
        folder: folder of the study.
        made_of: JSON value that the scores depend on: recipe and data.

    Raises:
        UserError: Optuna is not installed, or the journal has wrong values.
        DamagedError: a byte of the journal changed.
    """

    def __init__(self, space: TpeSpace, folder: Path, made_of: Any) -> None:
        require_optuna()
        self._space = space
        self._path = folder / JOURNAL
        self._identity = sha256_of_json({"space": {**to_dict(space), "samples": None}, "made of": made_of})
        self._events = self._read_events()
        self._points: list[Variant] = []
        """Variant of each drawn point; of a point that was drawn again, the first one."""
        self._scores: dict[str, float | None] = {}
        """Last score by variant."""
        drawn = [event.drawn for event in self._events if event.kind == "drawn"]
        # Another version of Optuna may draw other points: then the journal's points come first, new ones after them.
        search = self._replay(()) or self._replay(drawn)
        if search is None:
            raise UserError(f"{self._path} has points outside of the study's ranges. Remove it and run search again.")
        self._search = search

    @property
    def variants(self) -> list[Variant]:
        """The drawn variants, each once."""
        return list({variant.name: variant for variant in self._points}.values())

    @property
    def left(self) -> int:
        """Number of points that are still to be drawn."""
        return max(0, self._space.samples - len(self._points))

    @property
    def note(self) -> str:
        """Remark under the study's table."""
        points, variants = len(self._points), len(self.variants)
        again = f" {points - variants} of them were drawn before and not trained again." if points > variants else ""
        return f"TPE drew {points} points, the first {self._space.startup} at random.{again}"

    def draw(self) -> Variant | None:
        """Return the next variant, or None once all points of the study are drawn."""
        while len(self._points) < self._space.samples:
            number = len(self._points)
            drawn = self._search.suggest(_name_of(number)) or {}
            self._write(Event(number, "drawn", {axis.key: drawn[axis.key] for axis in self._space.axes}))
            before = {variant.name for variant in self._points}
            variant = self._add_point(drawn)
            if variant.name not in before:
                return variant
            Console().print(f"TPE drew {variant.name} again; it is not trained twice.", markup=False)
            if variant.name in self._scores:
                self._record(number, self._scores[variant.name])
        return None

    def tell(self, variant: str, score: float | None) -> None:
        """Let TPE learn a variant's score.

        Args:
            variant: name of a drawn variant.
            score: the higher the better; None if no trial has one, which counts as worse than every score.
        """
        if variant in self._scores and self._scores[variant] == score:
            return
        self._scores[variant] = score
        for number, own in enumerate(self._points):
            if own.name == variant:
                self._record(number, score)

    def _record(self, number: int, score: float | None) -> None:
        """Write the score of one point to the journal and tell TPE."""
        event = Event(number, "scored", score=score)
        scored = any(own.kind == "scored" and own.point == number for own in self._events)
        self._write(event)
        _tell(self._search, event, None if not scored else self._drawn_of(number))

    def _add_point(self, drawn: Mapping[str, float]) -> Variant:
        """Remember a drawn point and return its variant."""
        changes = self._space.point_of(drawn)
        sampler = TPE if len(self._points) >= self._space.startup else TPE_STARTUP
        name = name_point(changes)
        require(
            is_folder_name(name), f"The drawn variant {name!r} cannot be a folder name. Give the choices shorter names."
        )
        known = {variant.name: variant for variant in self._points}
        self._points.append(known.get(name) or Variant(name, changes, sampler=sampler))
        return self._points[-1]

    def _drawn_of(self, number: int) -> Mapping[str, float]:
        return next(event.drawn for event in self._events if event.kind == "drawn" and event.point == number)

    def _write(self, event: Event) -> None:
        """Add an event to the journal on disk, before anything follows from it."""
        self._events.append(event)
        write_hashed_json(self._path, to_dict(Journal(self._identity, tuple(self._events))))

    def _read_events(self) -> list[Event]:
        """Return the events of earlier launches of the same study; none if its ranges, recipe or data are others."""
        if not self._path.is_file():
            return []
        values = read_hashed_json(self._path, "Journal of TPE")
        try:
            journal = from_dict(Journal, values)
        except UserError as error:
            raise UserError(f"{self._path} is not a journal of TPE: {error} Remove it and run search again.") from error
        if journal.identity == self._identity:
            return list(journal.events)
        Console().print("The study's ranges, recipe or data have changed: TPE draws new points.")
        return []

    def _replay(self, enqueued: Sequence[Mapping[str, float]]) -> OptunaSearch | None:
        """Return a sampler that has seen the journal's events, or None if it draws other points.

        Args:
            enqueued: points that the sampler draws first, whatever it would draw itself.
        """
        self._points, self._scores = [], {}
        if not all(map(self._space.holds, enqueued)):
            return None
        search = make_search(self._space, enqueued)
        scored: set[int] = set()
        for event in self._events:
            if event.kind == "drawn":
                drawn = search.suggest(_name_of(event.point))
                if event.point != len(self._points) or drawn != event.drawn:
                    return None
                self._add_point(drawn)
            elif 0 <= event.point < len(self._points):
                self._scores[self._points[event.point].name] = event.score
                _tell(search, event, self._drawn_of(event.point) if event.point in scored else None)
                scored.add(event.point)
        return search


def require_optuna() -> None:
    """Raise UserError if Optuna is not installed."""
    require(
        importlib.util.find_spec("optuna") is not None,
        "The sampler tpe needs Optuna, which is not installed: run pip install 'ast-pipeline[optuna]'.",
    )


def make_search(space: TpeSpace, enqueued: Sequence[Mapping[str, float]] = ()) -> OptunaSearch:
    """Return Ray Tune's search by Optuna's TPE over a study's space."""
    import optuna  # noqa: PLC0415 - an extra

    optuna.logging.set_verbosity(logging.WARNING)
    search = OptunaSearch(
        sampler=optuna.samplers.TPESampler(seed=space.seed, n_startup_trials=space.startup),
        points_to_evaluate=[dict(point) for point in enqueued],
    )
    search.set_search_properties(SCORE, "max", {axis.key: axis.domain() for axis in space.axes})
    return search


def _tell(search: OptunaSearch, event: Event, again: Mapping[str, float] | None) -> None:
    """Tell a sampler a score; a point that had one before counts once more, with the new one."""
    if again is None:
        search.on_trial_complete(_name_of(event.point), None if event.score is None else {SCORE: event.score})
    elif event.score is not None:
        search.add_evaluated_point(dict(again), event.score)


def _name_of(number: int) -> str:
    """Return the name of a point for Ray Tune's search."""
    return str(number)
