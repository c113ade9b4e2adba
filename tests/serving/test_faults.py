"""Every fault of a request, made to happen against a real server; the others are in test_drain and `make chaos`."""

from __future__ import annotations

import psutil
import pytest

from tests.serving import chaos, faults
from tests.serving.faults import FAULTS, Fault
from tests.serving.processes import Running


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.number:02}")
def test_a_fault_of_a_request(server: Running, fault: Fault) -> None:
    before = psutil.Process(server.process.pid).children()
    faults.made(fault, server.url)
    assert psutil.Process(server.process.pid).children() == before
    if fault.number == 20:
        assert "forged" not in server.log.read_text()
    assert "Traceback" not in server.log.read_text()


def test_a_figure_that_misses_its_demand_is_marked_on_the_page() -> None:
    seen = [f"in {taken} ms{chaos._over(taken, 50, 'ms')}" for taken in (50, 52)]
    rows = {number: ("overload", "429 in < 50 ms", told) for number, told in enumerate(seen, 1)}
    page = chaos.document(rows, "not run")
    assert "| in 50 ms |" in page and "| in 52 ms (**over 50 ms**) |" in page
