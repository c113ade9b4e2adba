"""What a lane does with too many requests, late ones, computations that hang or fail, and clients that leave."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from serving.batching import Lane
from serving.batching.records import Limits
from serving.batching.thread import Outcome
from serving.errors import RequestError
from serving.http.web import Answer, Disconnected, Request, Route
from serving.settings import Settings
from tests.serving.test_auth import asked as asked_over_http
from tests.serving.test_auth import gated
from tests.serving.test_batching import SLOW, Echo, asked, image, refusal, run


def test_21_a_full_queue_refuses_at_once() -> None:
    echo = Echo()
    lane = Lane(echo, SLOW, Limits(max_batch=1, max_queue=4))

    async def main() -> None:
        echo.free.clear()
        taken = [asyncio.ensure_future(asked(lane, image(0)))]
        await asyncio.sleep(0.05)
        taken += [asyncio.ensure_future(asked(lane, image(tag))) for tag in range(1, 5)]
        await asyncio.sleep(0)
        begun = time.perf_counter()
        error = await refusal(asked(lane, image(9)))
        assert time.perf_counter() - begun < 0.05
        assert (error.status, error.code) == (429, "queue_full") and int(error.headers["retry-after"]) >= 1
        echo.free.set()
        assert [(await work).probabilities[0, 0] for work in taken] == [0, 1, 2, 3, 4]

    run(main())


def test_22_past_its_deadline_a_request_is_answered_and_not_computed() -> None:
    echo = Echo()
    lane, depths = Lane(echo, SLOW, Limits(max_batch=1, deadline_s=5.0)), list[int]()
    lane.on_depth = depths.append

    async def main() -> None:
        echo.free.clear()
        running = asyncio.ensure_future(asked(lane, image(0)))
        await asyncio.sleep(0.02)
        patient = asyncio.ensure_future(asked(lane, image(1)))
        begun = time.perf_counter()
        error = await refusal(asked(lane, image(2), deadline_s=0.1))
        assert 0.08 < time.perf_counter() - begun < 0.4  # while the first is still being computed
        assert (error.status, error.code) == (503, "deadline_passed") and depths[-2:] == [2, 1]
        echo.free.set()
        assert (await running).probabilities[0, 0] == 0 and (await patient).probabilities[0, 0] == 1

    run(main())
    assert echo.batches == [1, 1] and lane.tally.refused == 1


def test_22_deadlines_that_have_passed_on_arrival() -> None:
    lane = Lane(Echo(0.001), SLOW, Limits(max_batch=4))

    async def main() -> list[Outcome | BaseException]:
        work = [asked(lane, image(tag), deadline_s=(0.0, 1e-6, 5.0)[tag % 3]) for tag in range(60)]
        return await asyncio.gather(*work, return_exceptions=True)

    answers = run(main())
    assert all(isinstance(answer, Outcome) for answer in answers[2::3])
    codes = {answer.code for answer in answers if isinstance(answer, RequestError)}
    assert codes == {"deadline_passed"} and lane.depth == lane.expected == 0


def test_23_a_computation_that_hangs_is_given_up_and_its_slot_is_free() -> None:
    echo = Echo()
    lane = Lane(echo, SLOW, Limits(compute_timeout_s=0.2))

    async def main() -> None:
        echo.free.clear()
        error = await refusal(asked(lane, image(0)))
        assert (error.status, error.code) == (504, "inference_timeout")
        hung = set(echo.threads)
        echo.free.set()  # for the next one; the hung one returns late and finds nobody
        assert (await asked(lane, image(1))).probabilities[0, 0] == 1
        assert echo.threads > hung
        await asyncio.sleep(0.05)

    run(main())
    assert not lane._stuck and lane.tally.failures == 1


@pytest.mark.parametrize(("alone_ms", "inline_ms"), [(60.0, 0.0), (0.0, 60.0)])
def test_23_while_a_computation_hangs_nothing_is_computed_on_the_event_loop(alone_ms: float, inline_ms: float) -> None:
    echo = Echo()
    lane = Lane(echo, SLOW, Limits(compute_timeout_s=0.1, alone_ms=alone_ms, inline_ms=inline_ms))

    async def main() -> None:
        echo.free.clear()
        assert (await refusal(asked(lane, image(0, 2)))).code == "inference_timeout"
        echo.free.set()  # the lane learns that it is free with the next turn of the loop
        assert (await asked(lane, image(1))).probabilities[0, 0] == 1
        assert threading.current_thread() not in echo.threads
        await asyncio.sleep(0.05)
        await asked(lane, image(2))
        assert threading.current_thread() in echo.threads

    run(main())
    assert not lane._stuck


def test_23_a_model_that_hangs_again_and_again_is_not_given_more() -> None:
    echo = Echo()
    lane = Lane(echo, SLOW, Limits(compute_timeout_s=0.05))

    async def main() -> None:
        echo.free.clear()
        for _ in range(lane.limits.max_stuck):
            assert (await refusal(asked(lane, image(0)))).status == 504
        error = await refusal(asked(lane, image(0)))
        assert (error.status, error.code) == (503, "model_stuck")
        echo.free.set()
        await asyncio.sleep(0.1)
        assert (await asked(lane, image(5))).probabilities[0, 0] == 5

    run(main())


def test_26_a_client_that_left_is_not_computed_for() -> None:
    echo = Echo()
    lane = Lane(echo, SLOW, Limits(max_batch=1))

    async def main() -> None:
        echo.free.clear()
        running = asyncio.ensure_future(asked(lane, image(0)))
        await asyncio.sleep(0.02)
        left = asyncio.ensure_future(asked(lane, image(1), gone=lambda: True))
        cancelled = asyncio.ensure_future(asked(lane, image(2)))
        stays = asyncio.ensure_future(asked(lane, image(3)))
        await asyncio.sleep(0)
        cancelled.cancel()
        echo.free.set()
        assert (await stays).probabilities[0, 0] == 3 and (await running).probabilities[0, 0] == 0
        with pytest.raises(Disconnected):
            await left

    run(main())
    assert echo.batches == [1, 1] and lane.depth == lane.expected == lane.tally.refused == 0


def test_26_a_client_that_left_is_no_error() -> None:
    async def leaves(request: Request) -> Answer:
        raise Disconnected

    gate, tally = gated(Settings(), Route("GET", "/x", leaves))
    with pytest.raises(IndexError):  # there is no answer to read
        run(asked_over_http(gate))
    assert tally.seen == [(499, "", "/x")]


def test_one_request_that_fails_fails_alone() -> None:
    echo = Echo()
    lane = Lane(echo, SLOW)

    async def main() -> None:
        poison = image(1)
        poison[0, 0, 0, 2] = 66
        echo.free.clear()
        first = asyncio.ensure_future(asked(lane, image(0)))
        await asyncio.sleep(0.02)
        rest = [asyncio.ensure_future(asked(lane, images)) for images in (image(2), poison, image(3))]
        await asyncio.sleep(0)
        echo.free.set()
        answers = await asyncio.gather(first, *rest, return_exceptions=True)
        assert isinstance(answers[2], RuntimeError)
        assert [a.probabilities[0, 0] for a in answers if isinstance(a, Outcome)] == [0, 2, 3]

    run(main())
