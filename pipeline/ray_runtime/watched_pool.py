"""Actors that share tasks, and are asked all the while whether they live: one that is stopped is named and replaced."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray
import ray.util
from rich.console import Console

from ast_core.errors import UserError

LOOK_EVERY_S = 1.0
SILENCE_S = 30.0
"""One that has answered before, and then does not for so long, is stopped: it is ended, and another one started."""
START_S = 1800.0
"""For its first answer: it may have to bring shards from a store before."""
HEALTH = "health"
"""Concurrency group of an actor's method `who`, which answers beside its work: `process 12 on NODE`. It is to have no
retries: it is asked of a process, not of its successor."""


def answers(actors: list[Any], ask: Callable[[Any, Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
    """What the actors give for tasks, in the order in which it is there.

    Args:
        actors: that may be restarted, and their tasks with them.
        ask: an actor for a task; gives the reference.
        tasks: any number.

    Raises:
        UserError: an actor died, or was stopped, more often than it may be restarted.
    """
    pool, silence = ray.util.ActorPool(actors), _Silence(actors)
    for task in tasks:
        pool.submit(ask, task)
    while pool.has_next():
        try:
            yield pool.get_next_unordered(timeout=LOOK_EVERY_S)
        except TimeoutError:
            pass
        except ray.exceptions.RayActorError as error:
            raise UserError(
                f"A worker was lost again and again: {error}. What is on disk is kept: run the same command again once "
                "the cause is mended."
            ) from error
        silence.end()


class _Silence:
    """Who was asked when, and has not answered.

    Args:
        actors: to ask.
    """

    def __init__(self, actors: list[Any]) -> None:
        self._actors = actors
        self._asked = [(actor.who.remote(), time.monotonic()) for actor in actors]
        self._known = [""] * len(actors)

    def end(self) -> None:
        """End those that were silent for too long; costs nothing if it was called a moment ago."""
        now = time.monotonic()
        for number, (answer, since) in enumerate(self._asked):
            if now - since < LOOK_EVERY_S:
                continue
            if ray.wait([answer], timeout=0)[0]:
                self._known[number] = _answer(answer)
                self._ask(number)
            elif now - since > (SILENCE_S if self._known[number] else START_S):
                who = self._known[number] or "not begun"
                Console(stderr=True, soft_wrap=True).print(
                    f"Worker {number} ({who}) is stopped: it did not answer for {now - since:.0f} s. "
                    "It is ended, and another one does its work.",
                    markup=False,
                )
                ray.kill(self._actors[number], no_restart=False)
                self._known[number] = ""
                self._ask(number)

    def _ask(self, number: int) -> None:
        self._asked[number] = (self._actors[number].who.remote(), time.monotonic())


def _answer(answer: Any) -> str:
    try:
        return str(ray.get(answer))
    except ray.exceptions.RayActorError:  # it died, and its restart answers next
        return ""
