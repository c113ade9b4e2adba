"""Where uploads are decoded, and how long a request waits for it."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest
from PIL import Image

from serving import images
from serving.decoding import Images
from serving.errors import RequestError
from serving.settings import Settings
from tests.serving.pictures import BLUE, RED, encode, noise, plain


def test_images_come_out_in_their_order() -> None:
    found = asyncio.run(Images(Settings()).pixels([plain(RED), plain(BLUE), plain(RED)], 16, 24))
    assert found.shape == (3, 16, 24, 3) and found.dtype == np.uint8
    assert [tuple(image[0, 0]) for image in found] == [RED, BLUE, RED]


@pytest.mark.parametrize("inline_ms", [1000.0, 1e-6])
def test_an_error_tells_of_which_of_several_images_it_is(inline_ms: float) -> None:
    decoder = Images(Settings(inline_ms=inline_ms, max_pixels=2 * 32 * 32))
    for bodies, said in (
        ([b"junk"], "these bytes"),
        ([plain(), b"junk"], "image 1: these bytes"),
        ([plain(), plain()[:-30]], "image 1: the PNG is truncated"),
        ([plain()] * 3, "image 2: the image has 32 x 32 pixels"),
    ):
        with pytest.raises(RequestError, match=f"^{said}"):
            asyncio.run(decoder.pixels(bodies, 32, 32))


def test_only_what_is_short_is_read_on_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[bool] = []
    inspect = images.inspect

    def watched(*given: Any) -> images.Upload:
        read.append(threading.current_thread() is threading.main_thread())
        return inspect(*given)

    monkeypatch.setattr(images, "inspect", watched)
    long = encode(Image.fromarray(noise(120, 120)))
    assert images.inspect(long, 1_000_000).pixels < images.PIXELS_PER_MS  # it is its bytes that are many
    read.clear()
    for body in (plain(), long):
        assert asyncio.run(Images(Settings(inline_ms=1.0)).pixels([body], 32, 32)).shape == (1, 32, 32, 3)
    assert read == [True, False]


def test_a_request_waits_for_the_pool_until_its_deadline() -> None:
    """503 where it was not begun, 504 where it was; and the threads that are free again serve on."""
    decoder = Images(Settings(inline_ms=1e-6, pool_threads=1, deadline_s=0.3, retry_after_s=1.5))
    released = threading.Event()

    def endless() -> np.ndarray:
        released.wait(20)
        return np.zeros(1)

    async def scenario() -> list[Any]:
        first = asyncio.create_task(decoder._pooled(endless))
        await asyncio.sleep(0)  # it takes the thread
        return await asyncio.gather(first, decoder.pixels([plain()], 32, 32), return_exceptions=True)

    running, waiting = asyncio.run(scenario())
    assert (running.status, running.code) == (504, "inference_timeout")
    assert (waiting.status, waiting.code, waiting.headers) == (503, "deadline_passed", {"retry-after": "2"})
    released.set()
    assert asyncio.run(decoder.pixels([plain(BLUE)], 1, 1)).tolist() == [[[list(BLUE)]]]
