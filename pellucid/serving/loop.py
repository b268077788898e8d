"""The thread that drives the engine, and the queues that bring its events to whoever asked.

The engine belongs to one thread: it takes what has been asked since the last step (add, abort), steps, and hands the
events of the step over to the event loop. Nothing waits for a slow reader: its events wait in its own queue.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from pellucid.errors import InputError, PellucidError
from pellucid.serving.errors import full, stopped, timed_out

if TYPE_CHECKING:
    from pellucid.inference.engine import Engine
    from pellucid.inference.events import Asked, Event
    from pellucid.inference.params import SamplingParams
    from pellucid.serving.metrics import Metrics

T = TypeVar("T")

READERS = 4  # threads that understand constraints

log = logging.getLogger("pellucid.serving")


@dataclass(frozen=True, slots=True)
class Ask:
    """A prompt, as token ids, and how its answers are to be drawn. in_chat, adapter: see `Engine.add`. ready: the two
    halves of that are done apart, and this is what the first one gave."""

    prompt: Sequence[int]
    params: SamplingParams
    in_chat: bool = False
    adapter: str | None = None
    ready: Asked | None = None


@dataclass(eq=False, slots=True)
class Pending:
    """What one client waits for.

    inbox: None once all its prompts are accepted, then (number of the prompt, event), and at the end perhaps an error.
    ids: the engine's, of its prompts that are under way; left: the answers that are. Both are the engine thread's.
    """

    asks: Sequence[Ask]
    inbox: asyncio.Queue[Item]
    started: float
    ids: dict[int, int] = field(default_factory=dict)  # engine's id -> number of the prompt
    left: dict[int, int] = field(default_factory=dict)  # engine's id -> answers under way
    latest: dict[tuple[int, int], float] = field(default_factory=dict)  # (number, index) -> time of its last token


Item = tuple[int, "Event"] | PellucidError | None


@dataclass(eq=False, slots=True)
class Job:
    """Other work on the model, which goes on by a piece at each `next`; `done` gets what it returns."""

    work: Generator[None, None, Any]
    done: asyncio.Future[Any]


class EngineLoop:
    """Everything that is under way on one engine.

    max_answers: more than so many under way or waiting are refused with 429. timeout: seconds that a request may take.
    stats: the engine's numbers after its last step. alive: whether the thread runs.
    """

    def __init__(self, engine: Engine, metrics: Metrics, *, max_answers: int, timeout: float) -> None:
        self.stats: Mapping[str, float] = engine.stats()
        self.under_way = 0
        self.max_answers, self.timeout = max_answers, timeout
        self._engine, self._metrics = engine, metrics
        self._commands: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._pending: dict[int, Pending] = {}  # by the engine's id; the engine thread's
        self._jobs: deque[Job] = deque()  # the engine thread's
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._readers = ThreadPoolExecutor(READERS, "constraints")

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin; to be called in the event loop that will ask."""
        self._home = asyncio.get_running_loop()
        self._thread.start()

    def break_off(self) -> None:
        """End all that is under way with an error, and take nothing new: the server is stopping."""
        self._stopping = True
        self._commands.put(self._stop_all)

    async def stop(self) -> None:
        """End after the step that is running; what is still under way, or was asked meanwhile, ends with an error."""
        self._stopping = True
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._commands.put(None)
        await asyncio.to_thread(self._thread.join)
        while not self._commands.empty():  # what came after the thread's last look; nothing comes any more
            if (command := self._commands.get()) is not None:
                command()
        self._stop_all()

    @contextmanager
    def room(self, answers: int) -> Iterator[None]:
        """A place for so many answers, from before their prompts are read until the block is left.

        Raises `ApiError` (429) where there is none now, `InputError` where there never is.
        """
        if answers > self.max_answers:
            raise InputError(
                f"this asks for {answers} answers at once, and the server takes {self.max_answers}: split it"
            )
        if self.under_way + answers > self.max_answers:
            raise full(self.under_way, answers)
        self._check_running()
        self.under_way += answers
        try:
            yield
        finally:
            self.under_way -= answers

    def _check_running(self) -> None:
        if self._stopping or not self.alive:
            raise stopped()

    @asynccontextmanager
    async def ask(self, asks: Sequence[Ask]) -> AsyncIterator[AsyncIterator[tuple[int, Event]]]:
        """The events of all these prompts, each with its prompt's number, once all of them have been accepted.

        Leaving the `with` block aborts what is unfinished, before the engine's next step.
        Raises the engine's `InputError` for a prompt that it cannot answer; the iterator raises `ApiError` (408) when
        the time is over, and `PellucidError` when the engine fails.
        """
        started = time.perf_counter()
        if any(one.params.constraint is not None or one.params.bad_words for one in asks):
            asks = await self._in_time(self.in_reader_thread(partial(self._ready, asks)))
        self._check_running()
        pending = Pending(asks, asyncio.Queue(), started)
        left = started + self.timeout - time.perf_counter()
        timer = self._home.call_later(left, pending.inbox.put_nowait, timed_out(self.timeout))
        self._commands.put(partial(self._add, pending))
        try:
            accepted = await pending.inbox.get()
            if isinstance(accepted, PellucidError):
                raise accepted
            yield _events(pending.inbox, sum(one.params.n for one in asks))
        finally:
            timer.cancel()
            self._commands.put(partial(self._drop, pending))

    def _ready(self, asks: Sequence[Ask]) -> list[Ask]:
        """Constraints understood, in a reader's thread: they may take as long as many steps."""
        try:
            return [replace(one, ready=self._prepare(one)) for one in asks]
        except Exception as error:  # noqa: BLE001 (as at the edge of the engine's thread)
            raise said(error) from None

    def in_reader_thread(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """What `work` returns, from a thread beside the engine's."""
        return self._home.run_in_executor(self._readers, work)

    async def _in_time(self, work: asyncio.Future[T]) -> T:
        try:
            return await asyncio.wait_for(work, self.timeout)
        except asyncio.TimeoutError:
            raise timed_out(self.timeout) from None

    def _prepare(self, ask: Ask) -> Asked:
        return self._engine.prepare(ask.prompt, ask.params, in_chat=ask.in_chat, adapter=ask.adapter)

    async def compute(self, work: Generator[None, None, T]) -> T:
        """What `work` returns, a piece of which is done between every two steps of the engine.

        It is given up when this is cancelled. Raises `ApiError` (408) when the time is over.
        """
        self._check_running()
        job = Job(work, self._home.create_future())
        self._commands.put(partial(self._jobs.append, job))
        result: T = await self._in_time(job.done)
        return result

    # What follows runs in the engine's thread.

    def _run(self) -> None:
        try:
            while self._take_commands():
                self._step()
                self._work()
        finally:
            self._stop_all()

    def _take_commands(self) -> bool:
        """Do what has been asked since the last step. Returns whether to go on."""
        for command in self._waiting_commands():
            if command is None:
                return False
            command()
        return True

    def _waiting_commands(self) -> Iterator[Callable[[], None] | None]:
        """All that have come; where there is nothing to compute, the first is waited for."""
        if not self._engine.busy and not self._jobs:
            yield self._commands.get()
        try:
            while True:
                yield self._commands.get_nowait()
        except Empty:
            return

    def _add(self, pending: Pending) -> None:
        try:
            for number, one in enumerate(pending.asks):
                key = self._engine.queue(one.ready or self._prepare(one))
                self._pending[key] = pending
                pending.ids[key], pending.left[key] = number, one.params.n
                self._metrics.asked(len(one.prompt))
        except Exception as error:  # noqa: BLE001 (the edge of the thread: no request may end it)
            self._drop(pending)
            self._hand_over([(pending, said(error))])
        else:
            self._hand_over([(pending, None)])

    def _drop(self, pending: Pending) -> None:
        """Free what a request still holds."""
        for key in pending.ids:
            self._pending.pop(key, None)
            self._engine.abort(key)
            self._metrics.aborted(pending.left[key])
        pending.ids.clear()
        self.stats = self._engine.stats()

    def _step(self) -> None:
        if not self._engine.busy:
            return
        try:
            events = self._engine.step()
        except Exception as error:  # noqa: BLE001 (the edge of the thread: whatever it is, the others must live on)
            self._end_all(said(error))
            return
        self.stats = self._engine.stats()
        now = time.perf_counter()
        self._hand_over([found for event in events if (found := self._of(event, now)) is not None])

    def _work(self) -> None:
        """A piece of the oldest job: they are done one after the other, so that only one of them holds a cache."""
        if not self._jobs:
            return
        job = self._jobs.popleft()
        if job.done.cancelled():
            job.work.close()
            return
        try:
            next(job.work)
        except StopIteration as end:
            self._end(job, partial(job.done.set_result, end.value))
        except Exception as error:  # noqa: BLE001 (the edge of the thread, as in `_step`)
            self._end(job, partial(job.done.set_exception, said(error)))
        else:
            self._jobs.appendleft(job)

    def _end(self, job: Job, end: Callable[[], None]) -> None:
        def unless_it_has() -> None:
            if not job.done.done():
                end()

        if not self._home.is_closed():
            self._home.call_soon_threadsafe(unless_it_has)

    def _of(self, event: Event, now: float) -> tuple[Pending, Item] | None:
        """Whose event it is. None: it has been aborted."""
        pending = self._pending.get(event.id)
        if pending is None:
            return None
        number = pending.ids[event.id]
        before = pending.latest.get((number, event.index))
        if event.finish_reason != "error":  # that one brings no token
            self._metrics.token(now - (pending.started if before is None else before), first=before is None)
            pending.latest[number, event.index] = now
        if event.finish_reason is not None:
            self._metrics.finished(event.finish_reason, now - pending.started)
            pending.left[event.id] -= 1
            if not pending.left[event.id]:
                del self._pending[event.id], pending.ids[event.id], pending.left[event.id]
        return pending, (number, event)

    def _end_all(self, error: PellucidError) -> None:
        """Nobody's answer can go on, and the next request finds an empty engine."""
        ended = list(dict.fromkeys(self._pending.values()))
        for pending in ended:
            self._drop(pending)
        self._hand_over([(pending, error) for pending in ended])

    def _stop_all(self) -> None:
        self._end_all(stopped())
        while self._jobs:
            self._end(job := self._jobs.popleft(), partial(job.done.set_exception, stopped()))

    def _hand_over(self, items: Sequence[tuple[Pending, Item]]) -> None:
        if items and not self._home.is_closed():
            self._home.call_soon_threadsafe(_put, items)


def answers_of(params: SamplingParams) -> int:
    """How many answers to one prompt are under way at once."""
    return max(params.n, params.best_of or 0, params.beam_width or 0)


def said(error: Exception) -> PellucidError:
    """What clients are told of an error in the engine; what nobody foresaw is in the log, with its traceback."""
    if isinstance(error, PellucidError):
        return error
    log.error("the engine failed", exc_info=error)
    return PellucidError(f"this is a bug in pellucid ({type(error).__name__}: {error}): see the server's log")


def _put(items: Sequence[tuple[Pending, Item]]) -> None:
    for pending, item in items:
        pending.inbox.put_nowait(item)


async def _events(inbox: asyncio.Queue[Item], answers: int) -> AsyncIterator[tuple[int, Event]]:
    """The events, until so many answers have ended."""
    while answers:
        item = await inbox.get()
        if isinstance(item, PellucidError):
            raise item
        if item is not None:
            answers -= item[1].finish_reason is not None
            yield item
