"""What the service counts beside BentoML's own figures, on the same `/metrics` page."""

from __future__ import annotations

from serving.web import Observe

_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


def observer() -> Observe:
    """Counts answers by route and status, and their seconds by route.

    To be called once a worker: `prometheus_client` decides on import, by `PROMETHEUS_MULTIPROC_DIR`, whether workers
    share a page, and BentoML sets that for its workers only.
    """
    from prometheus_client import Counter, Histogram

    requests = Counter("modelkiln_requests", "Answers by route and status", ["route", "code"])
    seconds = Histogram("modelkiln_request_seconds", "Time to the answer, by route", ["route"], buckets=_BUCKETS)
    counters: dict[tuple[str, int], Counter] = {}
    histograms: dict[str, Histogram] = {}

    def observe(route: str, status: int, taken: float) -> None:
        key = (route, status)
        if key not in counters:
            counters[key] = requests.labels(route, str(status))
            histograms[route] = seconds.labels(route)
        counters[key].inc()
        histograms[route].observe(taken)

    return observe
