"""What the service counts beside BentoML's own figures, on the same `/metrics` page.

    modelkiln_requests_total{route,code}                 answers by HTTP status
    modelkiln_request_seconds{route}                     time to the answer
    modelkiln_errors_total{code}                         refusals and failures by their word
    modelkiln_inflight                                   requests being answered now
    modelkiln_model_requests_total{model,version,code}   answers about a variant by HTTP status
    modelkiln_stage_seconds{model,version,stage}         decode, queue, compute
    modelkiln_batch_images{model,version}                images that were computed together
    modelkiln_queue_depth{model,version}                 images that wait for their turn
    modelkiln_predictions_total{model,version,class}     likeliest classes: their shares drift when the input does
    modelkiln_confidence{model,version}                  probability of the likeliest class

Labels come from the routes, the store and the class names, never from a request's text.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from serving.http.record import Record
from serving.operations.series import Level, Series, Spread, Sum

_SECONDS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
_STAGES = ("decode", "queue", "compute")


class Metrics:
    """The counters of one worker.

    To be made once a worker: `prometheus_client` decides on import, by `PROMETHEUS_MULTIPROC_DIR`, whether workers
    share a page, and BentoML sets that for its workers only.
    """

    def __init__(self, series: Series) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        self._series = series
        self.on_flush: Callable[[], None] = lambda: None  # hands over what somebody else has counted
        variant = ["model", "version"]
        self._requests = Counter("modelkiln_requests", "Answers by route and status", ["route", "code"])
        self._seconds = Histogram(
            "modelkiln_request_seconds", "Time to the answer, by route", ["route"], buckets=_SECONDS
        )
        self._errors = Counter("modelkiln_errors", "Refusals and failures by their word", ["code"])
        self._inflight = Gauge("modelkiln_inflight", "Requests being answered", multiprocess_mode="livesum")
        self._model = Counter("modelkiln_model_requests", "Answers about a variant by status", [*variant, "code"])
        self._stage = Histogram("modelkiln_stage_seconds", "Time by stage", [*variant, "stage"], buckets=_SECONDS)
        self._batch = Histogram("modelkiln_batch_images", "Images computed together", variant, buckets=_IMAGES)
        self._depth = Gauge("modelkiln_queue_depth", "Images that wait", variant, multiprocess_mode="livesum")
        self._classes = Counter("modelkiln_predictions", "Likeliest classes", [*variant, "class"])
        self._confidence = Histogram(
            "modelkiln_confidence", "Probability of the likeliest class", variant, buckets=_SHARES
        )

    def answered(self, record: Record, seconds: float) -> None:
        """Counts one answer, whatever it was."""
        self._series.guarded(self._answered, record, seconds)

    def refused(self, record: Record, count: int) -> None:
        """Counts so many answers that were alike and took no time."""
        self._series.guarded(self._counted, record, 0.0, count)

    def inflight(self, count: int) -> None:
        """Requests that are being answered by this worker now."""
        self._series.guarded(lambda: self._series.gathered(Level, self._inflight).add(count))

    def batch(self, model: str, version: str, images: int) -> None:
        """Counts one call of a runtime."""
        self._series.guarded(lambda: self._series.gathered(Spread, self._batch, model, version).add(images))

    def queue_depth(self, model: str, version: str, images: int) -> None:
        """Images that wait for a variant now."""
        self._series.guarded(lambda: self._series.gathered(Level, self._depth, model, version).add(images))

    def flush(self) -> None:
        """Hands over to the shared files what was counted since the last time."""
        self.on_flush()
        self._series.flush()

    def _counted(self, record: Record, seconds: float, count: int = 1) -> None:
        child = self._series.gathered
        child(Sum, self._requests, record.route, str(record.status)).add(count)
        child(Spread, self._seconds, record.route).add(seconds, count)
        if record.code:
            child(Sum, self._errors, record.code).add(count)

    def _answered(self, record: Record, seconds: float) -> None:
        self._counted(record, seconds)
        child = self._series.gathered
        if not record.model:
            return
        model, version = record.model, record.version
        child(Sum, self._model, model, version, str(record.status)).add()
        if not record.images:
            return
        for stage, taken in zip(_STAGES, (record.decode_s, record.queue_s, record.compute_s), strict=True):
            child(Spread, self._stage, model, version, stage).add(taken)
        confidence = child(Spread, self._confidence, model, version)
        for name, probability in record.tops:
            child(Sum, self._classes, model, version, name).add()
            confidence.add(probability)


def worker_died(pid: int) -> None:
    """Takes a dead worker's gauges off the page; to be called in the process that noticed."""
    from bentoml._internal.configuration.containers import BentoMLContainer

    folder = Path(BentoMLContainer.prometheus_multiproc_dir.get())
    for path in folder.glob(f"gauge_live*_{pid}.db"):
        path.unlink(missing_ok=True)
