"""What the repository counts, beside the requests that `serving.operations.metrics` counts.

modelkiln_routed_total{model,version,role}                   requests answered as default, canary, or by name
modelkiln_shadow_images_total{model,version,against,result}  a shadow's images: agreed, disagreed, skipped or failed
modelkiln_shadow_difference{model,version,against}           the largest difference of a probability, by request
modelkiln_reloads_total{model,result}                        reloads: loaded, unloaded, failed
modelkiln_loaded{model,version}                              1 while a variant is loaded, 2 for the one that answers
"""

from __future__ import annotations

from serving.operations.series import Series

_DIFFERENCES = (1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


class Counts:
    """Counts nothing: for commands and tests."""

    def routed(self, model: str, version: str, role: str) -> None:
        """A request was given to a variant as `default`, `canary` or `named`."""

    def shadowed(self, model: str, version: str, against: str, result: str, images: int) -> None:
        """Images that a shadow computed, or did not."""

    def strayed(self, model: str, version: str, against: str, difference: float) -> None:
        """The largest difference of a probability between a shadow's answer and the one given."""

    def reloaded(self, model: str, result: str) -> None:
        """A model was `loaded`, `unloaded`, or `failed` to be."""

    def loaded(self, model: str, version: str, level: int) -> None:
        """A variant is loaded (1), answers by default (2), or neither (0)."""


class PrometheusCounts(Counts):
    """Counts on the worker's `/metrics` page; to be made once a worker, as `metrics.Metrics` is."""

    def __init__(self, series: Series) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        self._series = series
        pair = ["model", "version", "against"]
        self._routed = Counter("modelkiln_routed", "Requests by role of their variant", ["model", "version", "role"])
        self._images = Counter("modelkiln_shadow_images", "Images given to a shadow", [*pair, "result"])
        self._difference = Histogram(
            "modelkiln_shadow_difference", "Largest difference of a probability", pair, buckets=_DIFFERENCES
        )
        self._reloads = Counter("modelkiln_reloads", "Models loaded anew, by result", ["model", "result"])
        self._loaded = Gauge(
            "modelkiln_loaded", "1 loaded, 2 answers by default", ["model", "version"], multiprocess_mode="livemax"
        )

    def routed(self, model: str, version: str, role: str) -> None:
        """A request was given to a variant."""
        self._series.guarded(lambda: self._series.direct(self._routed, model, version, role).inc())

    def shadowed(self, model: str, version: str, against: str, result: str, images: int) -> None:
        """Images that a shadow computed, or did not."""
        if images:
            self._series.guarded(lambda: self._series.direct(self._images, model, version, against, result).inc(images))

    def strayed(self, model: str, version: str, against: str, difference: float) -> None:
        """How far a shadow strayed."""
        self._series.guarded(lambda: self._series.direct(self._difference, model, version, against).observe(difference))

    def reloaded(self, model: str, result: str) -> None:
        """A model was loaded, unloaded, or failed to be."""
        self._series.guarded(lambda: self._series.direct(self._reloads, model, result).inc())

    def loaded(self, model: str, version: str, level: int) -> None:
        """What a variant is."""
        self._series.guarded(lambda: self._series.direct(self._loaded, model, version).set(level))
