"""A transform as its training would leave it, without one: `tiny` with its dense kernels pruned and clustered."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import catalog
from catalog import Store
from export import transforming
from export.transforms import ITS_OWN, MODEL, TransformCard, chain, name_of

DENSE = ("dense", "dense_1")


def write(store: Store, text: str, share: float, values: int) -> dict[str, NDArray[np.float32]]:
    """Files the chain `text` of `tiny` as made; its dense kernels, of which `share` are zero and the rest `values`.

    Every link gets a card that holds for it, and the same weights.
    """
    import keras

    from export.tuning import twin
    from training import network

    parent, stages = store.card("tiny"), chain(text)
    whole = keras.saving.load_model(store.model_dir("tiny") / MODEL, compile=False)
    plain = twin.network_in(whole)
    for name in DENSE:
        layer = plain.get_layer(name)
        kernel, bias = layer.get_weights()
        layer.set_weights([_compressed(kernel, share, values), bias])
    source = parent.weights_sha256
    for number in range(1, len(stages) + 1):
        folder = store.transform_dir("tiny", name_of(stages[:number]))
        folder.mkdir(parents=True)
        whole.save(folder / MODEL)
        card = _card(parent, stages[:number], source, network.weights_sha256(plain), folder)
        catalog.write_atomic(folder / catalog.CARD, catalog.to_json(card))
        source = card.weights_sha256
    return {name: plain.get_layer(name).get_weights()[0] for name in DENSE}


def _compressed(kernel: NDArray[Any], share: float, values: int) -> NDArray[np.float32]:
    size = np.abs(kernel)
    edges = np.linspace(-size.max(), size.max(), values)
    nearest = edges[np.abs(kernel[..., None] - edges).argmin(axis=-1)]
    return np.where(size < np.quantile(size, share), 0, nearest).astype(np.float32)


def _card(parent: Any, links: list[Any], source: str, weights: str, folder: Any) -> TransformCard:
    return TransformCard(
        model=parent.model,
        transform=name_of(links),
        parent_sha256=parent.weights_sha256,
        source_sha256=source,
        weights_sha256=weights,
        dataset_sha256=parent.dataset.sha256,
        seed=parent.seed,
        recipe=transforming._recipe(parent, links[-1], ITS_OWN),
        parameters=links[-1].parameters,
        settings={},
        weights=0,
        macs=0,
        val_top1=None,
        seconds=0.0,
        versions={},
        commit="",
        command="",
        created=catalog.now(),
        files={MODEL: catalog.sha256_of(folder / MODEL)},
    )
