"""The life of one container: image, start or adoption, readiness, and a watch over it until we are told to stop.

The engine restarts a container that ends; this restarts one that hangs, tells of both in the log, and keeps the last
words. It runs in a process of its own, so that a closed terminal stops nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx

from qmd_remote import logbook
from qmd_remote.errors import QmdRemoteError, ServiceFailed, WaitEnded
from qmd_remote.launch import container_end, diagnose, docker_preflight, hang, phases, wait
from qmd_remote.launch.container import Container
from qmd_remote.launch.container_log import ContainerLog
from qmd_remote.launch.container_watch import Happening, Watch, end_in_words
from qmd_remote.launch.download import Growth
from qmd_remote.launch.engine import STOP_GRACE_S, Engine, Found, ImageFacts
from qmd_remote.launch.phases import Phase
from qmd_remote.launch.pull_lines import PullLines
from qmd_remote.launch.wait import Limits, Pace
from qmd_remote.logbook import Logbook
from qmd_remote.reach import trusting
from qmd_remote.stop_wish import StopWish
from qmd_remote.supervision import RestartPolicy

log = logging.getLogger("qmd_remote.container")

POLL_S = 1.0
T = TypeVar("T")


@dataclass(frozen=True)
class Service:
    """What the container offers: where it answers, the model's name there (empty: any), and when it counts as stuck.

    `fills` are the folders that it downloads its model into.
    """

    title: str
    url: str
    limits: Limits
    hang_limit_s: float
    model: str = ""
    key: str = ""
    certificate: str = ""
    fills: tuple[Path, ...] = ()


class ContainerKeeper:
    """Keeps one container. `run` is its whole life; calls of the engine go to threads, since they block."""

    def __init__(
        self, container: Container, service: Service, engine: Engine, book: Logbook, wish: StopWish | None = None
    ) -> None:
        self.container = container
        self.service = service
        self.engine = engine
        self.book = book
        self.wish = wish or StopWish()
        self.policy = RestartPolicy()
        self._log = ContainerLog(engine, book)
        self._growth = Growth(service.fills)
        self._ready_at: float | None = None
        self._made: Found | None = None  # what is to be taken away at the end: never ready, or told to stop

    async def run(self) -> int:
        """Bring the container up, watch it, and remove it when told to stop. Returns the exit code for the process.

        Raises QmdRemoteError when it cannot be brought up; nothing that was made for it is left then.
        """
        with self.wish.heeded_in_loop():
            try:
                found = await self._ready()
                if found is not None and not self.wish.asked.is_set():
                    await self._engine(self.engine.keep_running, found)
                    self._made = None
                    if not await self._watch(Watch(found)):
                        return 1
                    self._made = found
                return 0
            finally:
                await self._remove()
                await self._log.leave()

    async def bring_image(self) -> ImageFacts:
        """The image, pulled if it is not here. Whoever has more to fetch asks first: a wrong name is told at once.

        Raises as `Engine.pull`.
        """
        image = await self._engine(self.engine.image, self.container.image)
        if image is None:
            lines = PullLines(self.book.say)
            asked = self.wish.asked.is_set
            image = await self._engine(lambda: self.engine.pull(self.container.image, lines.tell, asked))
        return image

    async def _ready(self) -> Found | None:
        """The container, answering; None when we are told to stop before."""
        found = await self._begin()
        if found is None:
            return None
        await self._log.follow(found)
        clock = asyncio.get_running_loop().time
        began, pace = clock(), self._pace()
        while not self.wish.asked.is_set():
            if await self._serves():
                log.info("%s %s %.1f s", self.service.title, wait.READY, clock() - began)
                return found
            found = await self._still_starting(found)
            await self._must_move(pace)
            await self._pause(POLL_S)
        return None

    def _pace(self) -> Pace:
        return Pace(self.service.title, self.book.path, self.service.limits)

    async def _must_move(self, pace: Pace) -> None:
        """Raise WaitEnded when the log has stood still for too long. A download that says nothing is told in it."""
        if news := await asyncio.to_thread(self._growth.news):
            self.book.say(news)
        log_now = await asyncio.to_thread(wait.read_tail, self.book.path)
        pace.moves_on(phases.latest(log_now) or Phase("starting"))

    async def _begin(self) -> Found | None:
        """The container, running: adopted when it is the same, else made anew."""
        image = await self.bring_image()
        if self.wish.asked.is_set():
            return None
        found = await self._ours_alone(image.id)
        if found is None:
            self.book.say("phase: starting the container")
            found = self._made = await self._engine(self.engine.run, self.container, image)
            log.info("container %s started", found.name)
        else:
            self._made = found
            log.info("container %s is ours and the same, and is kept", found.name)
            if not found.running:
                found = self._made = await self._engine(self.engine.start, found)
        return found

    async def _ours_alone(self, image_id: str) -> Found | None:
        """The same container if it is there; others of ours for this service are removed, and foreign ones refused."""
        same: Found | None = None
        for one in await self._engine(self.engine.ours, self.container.owner, self.container.service):
            if one.is_of(self.container, image_id):
                same = one
            else:
                log.info("container %s is replaced, since its settings or its image changed", one.name)
                await self._engine(self.engine.remove, one, self.container.owner)
        other = None if same else await self._engine(self.engine.find, self.container.name)
        if other is not None:
            raise docker_preflight.foreign(self.container, other)
        return same

    async def _still_starting(self, before: Found) -> Found:
        """The container while it starts. Raises ServiceFailed as soon as it ended, was restarted, or is gone."""
        title = self.service.title
        now = await self._engine(self.engine.find, before.name)
        if now is None or now.id != before.id:
            self._made = None
            raise ServiceFailed(f"the container of the {title} was removed while it started", hint="qmd-remote up")
        if now.running and now.started_at == before.started_at:
            return now
        words = [*self._log.recent]
        await self._log.leave()
        # an engine that restarts what never was ready: how it ended is lost, and the log may have begun anew
        again = now.running
        self._keep_last_words(now.name, "ended" if again else end_in_words(now), words)
        text = await asyncio.to_thread(wait.read_tail, self.book.path)
        if again:
            told = b"\n".join(word.rstrip(b"\n") for word in words).decode("utf-8", "replace")
            text = diagnose.before_restart(logbook.unstamped(told))
        raise container_end.to_error(title, text, now, self.book.path)

    async def _serves(self) -> bool:
        """Whether it answers its health check with 200, and has the model under the name that clients will use.

        Raises ServiceFailed as `wait.serves` does.
        """
        one = self.service
        headers = {"authorization": f"Bearer {one.key}"} if one.key else {}
        async with httpx.AsyncClient(
            trust_env=False, timeout=5, headers=headers, verify=trusting(one.certificate)
        ) as client:
            try:
                if (await client.get(f"{one.url}/health")).status_code != httpx.codes.OK:
                    return False
                return not one.model or wait.serves(await client.get(f"{one.url}/v1/models"), one.model)
            except httpx.HTTPError:
                return False

    async def _watch(self, watch: Watch) -> bool:
        """Look after a container that was ready: True when we are told to stop, False when somebody took it away."""
        clock = asyncio.get_running_loop().time
        answering, kept = True, False
        probe = asyncio.ensure_future(self._next_standstill())
        try:
            while not self.wish.asked.is_set():
                await self._pause(POLL_S)
                try:
                    now = await self._look(watch.found.id, revive=not answering)
                except QmdRemoteError as error:  # whatever it says, the container may go on, and so do we
                    if answering:
                        log.warning("the container engine does not answer: %s", error.message)
                    answering = False
                    continue
                if not answering:
                    log.info("the container engine answers again")
                    if now is not None and now.running and now.started_at == watch.found.started_at:
                        await self._log.follow(now, tail=0)  # the stream ended with the connection
                answering = True
                happened = watch.see(now, clock())
                if happened in {Happening.REMOVED, Happening.STOPPED}:
                    log.error(
                        "container %s was %s by somebody else; to have it again: qmd-remote up",
                        self.container.name,
                        happened.value,
                    )
                    return False
                if happened is Happening.ENDED and now is not None:
                    self._keep_last_words(now.name, end_in_words(now), self._log.recent)
                    kept = True
                elif happened is Happening.RESTARTED:
                    if not kept:  # it was quicker than a look
                        self._keep_last_words(self.container.name, "ended", self._log.recent)
                    kept = False
                    log.warning("container %s ended, and its engine restarted it", self.container.name)
                    await self._log.follow(watch.found)
                    probe.cancel()
                    probe = asyncio.ensure_future(self._next_standstill())
                elif probe.done():
                    if now is not None and now.running:  # and not paused by a person, say
                        watch.restarted_by_us(await self._restart(watch.found, probe.result()))
                    probe = asyncio.ensure_future(self._next_standstill())
            return True
        finally:
            probe.cancel()
            await asyncio.gather(probe, return_exceptions=True)

    async def _look(self, ours: str, *, revive: bool) -> Found | None:
        """What has the container's name now. Ours is kept running by its engine; with `revive` it is started, too."""
        now = await self._engine(self.engine.find, self.container.name)
        if now is None or now.id != ours:
            return now
        if revive and now.state == "exited":
            # an engine that crashed ends the containers that it finds alive, and does not restart them
            now = await self._engine(self.engine.start, now)
        if now.running and now.restart_policy == "no":
            await self._engine(self.engine.keep_running, now)
        return now

    async def _next_standstill(self) -> str:
        """How the service stands still, once it does: it completes nothing, or does not come back to its health check.

        The engine restarts what ends, and nobody else waits for what it restarted. Our own server is not asked for
        completions: it supervises its worker itself.
        """
        one = self.service
        self._ready_at = None
        while True:
            pace = self._pace()
            while not await self._lives():
                try:
                    await self._must_move(pace)
                except WaitEnded as error:
                    return error.message
                await asyncio.sleep(POLL_S)
            self._ready_at = self._ready_at or asyncio.get_running_loop().time()
            await asyncio.sleep(one.hang_limit_s)
            if one.model and await hang.is_hung(one.url, one.model, one.hang_limit_s, one.key):
                return f"{one.title} says that it is well, and completed nothing for {one.hang_limit_s:.0f} s"

    async def _lives(self) -> bool:
        """Whether the health check answers with 200. Who it is, and by which certificate, was looked at before."""
        try:
            # nothing is sent; a certificate that expired, or is being renewed, is no standstill
            async with httpx.AsyncClient(trust_env=False, timeout=5, verify=False) as client:  # noqa: S501
                return (await client.get(f"{self.service.url}/health")).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    async def _restart(self, found: Found, why: str) -> Found:
        """Restart a service that stands still, after a pause that grows when it happens again and again."""
        now = asyncio.get_running_loop().time()
        delay = self.policy.next_delay(0.0 if self._ready_at is None else now - self._ready_at)
        log.warning("%s; restarting it %s", why, f"in {delay:.0f} s" if delay else "at once")
        self.book.keep_crash(f"container {found.name} hung", self._log.recent)
        await self._pause(delay)
        if self.wish.asked.is_set():
            return found
        try:
            found = await self._engine(self.engine.restart, found, STOP_GRACE_S)
        except QmdRemoteError as error:  # what became of it the next looks tell
            log.warning("the container could not be restarted: %s", error.message)
            return found
        await self._log.follow(found)
        return found

    async def _remove(self) -> None:
        found, self._made = self._made, None
        if found is None:
            return
        self.book.say("phase: stopping the container")
        try:
            await self._engine(self.engine.remove, found, self.container.owner)
        except QmdRemoteError as error:  # told, and no reason to hide why it was to be removed
            log.error("container %s could not be removed: %s", found.name, error.message)
        else:
            log.info("container %s stopped and removed", found.name)

    def _keep_last_words(self, name: str, ended: str, lines: Sequence[bytes]) -> None:
        how = f"container {name} {ended}"
        kept = self.book.keep_crash(how, lines)
        log.warning("%s%s", how, f"; its last lines are in {kept}" if kept else "")

    async def _engine(self, call: Callable[..., T], *arguments: object) -> T:
        return await asyncio.to_thread(call, *arguments)

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self.wish.asked.wait(), seconds or 0.001)
