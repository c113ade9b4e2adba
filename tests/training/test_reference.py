"""The `reference` recipes, written for one GPU, take two real steps on the CPU under JAX (slow: XLA compiles each)."""

import os
import subprocess
import sys

import pytest

import catalog

MODELS = [
    name
    for name in catalog.plugin_names("training.models")
    if "reference" in catalog.plugin("training.models", name).RECIPES
]
STEPS = """
import dataclasses, sys
import catalog
from training import data
from training.job import Job
from training.loop import train
model, store = sys.argv[1:]
whole = data.load("digits", validation=0.02)
few = dataclasses.replace(
    whole, x_train=whole.x_train[:8], y_train=whole.y_train[:8], x_val=whole.x_val[:4], y_val=whole.y_val[:4]
)
recipe = catalog.plugin("training.models", model).RECIPES["reference"]
recipe = dataclasses.replace(recipe, batch_size=4, epochs=1)
done = train(Job(model, model, "reference", recipe, few, 0, catalog.Store(store)))
print(len(done.history), done.history[0]["loss"] > 0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_two_steps_under_jax(model, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", STEPS, model, str(tmp_path)],
        cwd=catalog.ROOT,
        env={**os.environ, "KERAS_BACKEND": "jax"},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.stdout.split() == ["1", "True"], done.stderr[-2000:]
