"""Batches: nobody's answer is another's, nobody waits without need, for ever or for nothing."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
import weakref
from collections.abc import Awaitable, Coroutine
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.batching import Lane
from serving.batching import thread as batching_thread
from serving.batching.records import Limits
from serving.batching.thread import Outcome
from serving.errors import RequestError

Images = NDArray[np.uint8]


class Echo:
    """A network that answers each image with its first pixel, and remembers its batches."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.batches, self.threads = seconds, [], set()  # type: ignore[var-annotated]
        self.free = threading.Event()
        self.free.set()

    def __call__(self, images: Images) -> NDArray[np.float32]:
        self.batches.append(len(images))
        self.threads.add(threading.current_thread())
        time.sleep(self.seconds)
        assert self.free.wait(30)
        if (images[:, 0, 0, 2] == 66).any():
            raise RuntimeError("a poisonous image")
        return images[:, 0, 0].astype(np.float32)


def image(tag: int, count: int = 1) -> Images:
    """`count` images that differ, all tagged."""
    made = np.zeros((count, 4, 4, 3), np.uint8)
    made[:, 0, 0, 0], made[:, 0, 0, 1] = tag, np.arange(count)
    return made


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    import uvloop

    async def bounded() -> Any:
        return await asyncio.wait_for(coroutine, 30)

    return uvloop.run(bounded())


async def asked(lane: Lane, images: Images, **options: Any) -> Outcome:
    with lane:
        return await lane.run(images, **options)


async def refusal(work: Awaitable[Outcome]) -> RequestError:
    with pytest.raises(RequestError) as caught:
        await work
    return caught.value


SLOW = 50.0  # ms that a lane expects of an image: far too long for the event loop


@pytest.mark.parametrize("expected_ms", [0.001, 1.0, SLOW], ids=["inline", "inline when alone", "in the thread"])
def test_64_at_once_get_their_own_answers(expected_ms: float) -> None:
    echo = Echo(0.0005)
    lane = Lane(echo, expected_ms, Limits(max_batch=16))

    async def client(tag: int) -> None:
        for turn in range(20):
            count = 1 + (tag + turn) % 3
            with lane:
                await asyncio.sleep(0)  # its images are still being read
                outcome = await lane.run(image(tag, count))
            np.testing.assert_array_equal(outcome.probabilities[:, 0], tag)
            np.testing.assert_array_equal(outcome.probabilities[:, 1], np.arange(count))
            assert 1 <= outcome.batch <= 16 and outcome.queue_s >= 0
            await asyncio.sleep(0)

    async def main() -> None:
        await asyncio.gather(*(client(tag) for tag in range(64)))

    run(main())
    assert lane.tally.requests == 64 * 20 and lane.depth == lane.expected == 0
    assert sum(echo.batches) == lane.tally.images
    assert np.mean(echo.batches) > 8 and max(echo.batches) <= 16


def test_alone_it_is_computed_at_once_and_on_the_event_loop() -> None:
    echo = Echo()
    lane = Lane(echo, 1.0, Limits(alone_ms=1e6))  # however slow this machine is now

    async def main() -> list[float]:
        turns: list[float] = []
        ticking = asyncio.get_running_loop().call_soon(turns.append, 0.0)
        for tag in range(5):
            outcome = await asked(lane, image(tag))
            assert (outcome.queue_s, outcome.batch) == (0.0, 1)
        ticking.cancel()
        return turns

    assert run(main()) == []  # not one turn of the loop passed
    assert echo.threads == {threading.current_thread()}


def test_with_others_in_the_house_only_what_is_very_short_is_computed_at_once() -> None:
    """Handlers run one after another: none of them sees the others on their way to its lane."""
    echo = Echo(0.002)
    lane = Lane(echo, 1.0)
    lane.present = lambda: 16

    async def main() -> None:
        await asyncio.gather(*(asked(lane, image(tag)) for tag in range(16)))
        lane.present = lambda: 1
        await asked(lane, image(16))

    run(main())
    assert sum(echo.batches) == 17 and len(echo.batches) < 9 and threading.main_thread() in echo.threads


def test_what_is_slow_is_computed_off_the_event_loop() -> None:
    echo = Echo(0.2)
    lane = Lane(echo, 200.0)

    async def main() -> int:
        turns, work = 0, asyncio.ensure_future(asked(lane, image(1)))
        while not work.done():
            await asyncio.sleep(0.01)
            turns += 1
        return turns

    assert run(main()) > 10
    assert threading.current_thread() not in echo.threads


def test_the_window_is_as_long_as_the_batch_before() -> None:
    echo = Echo(0.05)
    lane = Lane(echo, SLOW, Limits(max_batch=32))

    async def main() -> None:
        first = asyncio.ensure_future(asked(lane, image(0)))
        await asyncio.sleep(0.01)
        rest = [asyncio.ensure_future(asked(lane, image(tag))) for tag in range(1, 21)]
        assert (await first).batch == 1
        assert {(await other).batch for other in rest} == {20}

    run(main())
    assert echo.batches == [1, 20]


EAGER = Limits(max_batch=4, alone_ms=0, inline_ms=0, compute_timeout_s=0.4)


async def _one_computed_and_four_ahead(lane: Lane, echo: Echo, **options: Any) -> list[asyncio.Future[Outcome]]:
    echo.free.clear()
    first = asyncio.ensure_future(asked(lane, image(0)))
    await asyncio.sleep(0.02)
    full = [asyncio.ensure_future(asked(lane, image(tag), **options)) for tag in (1, 2, 3, 4)]
    await asyncio.sleep(0.02)
    assert lane.depth == 0 and echo.batches == [1]
    return [first, *full]


def test_the_thread_has_its_next_batch_where_that_is_full() -> None:
    echo = Echo()
    lane = Lane(echo, 1.0, EAGER)

    async def main() -> None:
        asked_for = await _one_computed_and_four_ahead(lane, echo)
        echo.free.set()
        time.sleep(0.1)  # the event loop is busy elsewhere
        assert echo.batches == [1, 4]
        assert [(await work).probabilities[0, 0] for work in asked_for] == [0, 1, 2, 3, 4]
        assert min([(await work).queue_s for work in asked_for[1:]]) >= 0.01

    run(main())
    assert lane.depth == lane.expected == 0 and lane.tally.requests == 5


def test_22_deadlines_hold_for_what_was_handed_ahead() -> None:
    echo = Echo()
    lane = Lane(echo, 1.0, EAGER)

    async def main() -> None:
        first, *full = await _one_computed_and_four_ahead(lane, echo, deadline_s=0.1)
        for work in full:
            assert (await refusal(work)).code == "deadline_passed"
        assert not first.done()
        echo.free.set()
        assert (await first).probabilities[0, 0] == 0

    run(main())
    assert echo.batches == [1] and lane.depth == lane.expected == 0


def test_23_what_was_handed_to_a_thread_that_hangs_is_computed_by_another() -> None:
    echo = Echo()
    lane = Lane(echo, 1.0, EAGER)

    async def main() -> None:
        first, *full = await _one_computed_and_four_ahead(lane, echo)
        assert (await refusal(first)).code == "inference_timeout"
        echo.free.set()
        assert [(await work).probabilities[0, 0] for work in full] == [1, 2, 3, 4]
        await asyncio.sleep(0.05)

    run(main())
    assert echo.batches == [1, 4] and len(echo.threads) == 2 and not lane._stuck


def test_a_batch_that_is_long_is_not_handed_ahead() -> None:
    """It would gain nothing, and its deadlines would have to be kept in two places."""
    echo = Echo()
    lane = Lane(echo, SLOW, EAGER)

    async def main() -> None:
        echo.free.clear()
        work = [asyncio.ensure_future(asked(lane, image(tag))) for tag in range(5)]
        await asyncio.sleep(0.02)
        assert lane.depth == 1
        echo.free.set()
        await asyncio.gather(*work)

    run(main())
    assert echo.batches == [4, 1]


def test_a_request_larger_than_a_batch_is_computed_in_pieces() -> None:
    echo = Echo()
    lane = Lane(echo, 0.001, Limits(max_batch=8))
    outcome = run(asked(lane, image(3, 21)))
    np.testing.assert_array_equal(outcome.probabilities[:, 1], np.arange(21))
    assert echo.batches == [8, 8, 5]


def test_a_batch_is_put_together_without_letting_go_of_the_interpreter() -> None:
    images = [np.full((1, 32, 32, 3), number, np.uint8) for number in range(32)]
    turns, done, before = [0], threading.Event(), sys.getswitchinterval()

    def others() -> None:
        while not done.is_set():
            turns[0] += 1

    thread = threading.Thread(target=others)
    sys.setswitchinterval(1.0)
    try:
        thread.start()  # whoever lets go of the lock may get it back a second later
        time.sleep(0.01)
        seen = turns[0]
        for _ in range(100):  # NumPy's own way loses it within a few
            joined = batching_thread.joined(images)
        assert turns[0] == seen
    finally:
        done.set()
        sys.setswitchinterval(before)
        thread.join()
    images[3] = np.full((1, 32, 3, 32), 3, np.uint8).transpose(0, 1, 3, 2)  # not contiguous
    for several in (images, images[3:4]):
        np.testing.assert_array_equal(batching_thread.joined(several), np.concatenate(several))
    assert joined.shape == (32, 32, 32, 3)


def test_an_idle_thread_ends_and_keeps_nothing_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching_thread, "IDLE_S", 0.05)
    echo = Echo()
    lane = Lane(echo, SLOW)
    run(asked(lane, image(1)))
    (thread,) = echo.threads
    thread.join(5)
    assert not thread.is_alive()
    assert run(asked(lane, image(2))).probabilities[0, 0] == 2
    gone, made = weakref.ref(lane), list(echo.threads)
    del lane
    for other in made:
        other.join(5)
    gc.collect()
    assert gone() is None


def test_the_more_ask_the_more_are_computed_together() -> None:
    """A call costs 2 ms whatever it holds; clients that wait for each other's calls share them."""
    shared = {}
    for clients in (1, 8, 64):
        echo = Echo(0.002)
        lane = Lane(echo, SLOW, Limits(max_batch=64))

        async def client(lane: Lane = lane) -> None:
            for _ in range(10):
                await asked(lane, image(7))

        async def main(clients: int = clients) -> None:
            await asyncio.gather(*(client() for _ in range(clients)))

        run(main())
        shared[clients] = np.mean(echo.batches)
    assert shared[1] == 1 and shared[8] > 4 and shared[64] > 32
