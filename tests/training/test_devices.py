"""Several devices, made of the processor, train what one device trains; and the figures TensorBoard is given."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import catalog
from catalog import KilnError, Recipe, Store
from training import data, devices, loop, tensorboard
from training.job import Job

SCRIPT = """
import dataclasses, json, sys
import numpy as np
from catalog import Recipe, Store
from training import data, loop
from training.job import Job
whole = data.load("digits")
few = dataclasses.replace(whole, x_train=whole.x_train[:128], y_train=whole.y_train[:128], x_val=whole.x_val[:33],
                          y_val=whole.y_val[:33])
recipe = Recipe(epochs=2, batch_size=32, optimizer="sgd", learning_rate=1e-3, average=0.9)
found = []
for count in (2, 1):
    job = Job(f"m{count}", "lenet", "test", recipe, few, 0, Store(sys.argv[1]), 1e9, "", count)
    trained = loop.train(job)
    sums = [float(np.abs(weight).sum()) for weight in trained.model.get_weights()]
    found.append([trained.history[-1]["val_loss"], *sums])
print(json.dumps(found))
"""


TAUGHT = """
import dataclasses, json, sys
from catalog import Recipe, Store
from training import data, devices, distill, loop, network
from training.job import Job
whole = data.load("digits")
few = dataclasses.replace(whole, x_train=whole.x_train[:602], y_train=whole.y_train[:602], x_val=whole.x_val[:9],
                          y_val=whole.y_val[:9])
store, recipe, keras = Store(sys.argv[1]), Recipe(batch_size=600, teacher="teacher"), loop.keras_namespace()
with devices.spread(keras, 3) as count:
    teacher = network.with_probabilities(keras, network.build(keras, "lenet", (32, 32, 3), 10, recipe))
    store.model_dir("teacher").mkdir()
    teacher.save(store.model_dir("teacher") / "model.keras")
    answers = distill.Teacher(store.model_dir("teacher") / "model.keras", "0")
    run = loop.prepare(Job("m", "lenet", "test", recipe, few, 0, store, devices=3, teacher=answers), count)
    print(json.dumps(run.taught.about(run.draw(0)[0], 0, lambda: None).shape))
"""


def on(backend: str, folder: Path, script: str = SCRIPT) -> Any:
    run = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        cwd=catalog.ROOT,
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("backend", ["tensorflow", pytest.param("jax", marks=pytest.mark.slow)])
def test_two_devices_train_what_one_does(backend, tmp_path):
    two, one = on(backend, tmp_path)
    np.testing.assert_allclose(two, one, rtol=1e-3)
    for model in ("m1", "m2"):
        assert list((tmp_path / model / "checkpoints").glob("e00002-*")), "no checkpoint from several devices"


@pytest.mark.slow
def test_a_teacher_answers_on_as_many_devices_as_do_not_divide_five_hundred(tmp_path):
    assert on("jax", tmp_path, TAUGHT) == [600, 10]


def test_every_device_gets_the_same_number_of_images(tmp_path):
    whole = data.load("digits")
    few = dataclasses.replace(whole, x_train=whole.x_train[:131], y_train=whole.y_train[:131])
    job = Job("m", "lenet", "test", Recipe(batch_size=64), few, 0, Store(tmp_path))
    x, targets, _ = loop.prepare(job, 4).draw(0)
    assert len(x) == len(targets) == 128
    assert len(devices.padded(np.zeros((33, 2)), 4)) == 36 and len(devices.padded(np.zeros((32, 2)), 4)) == 32
    with pytest.raises(KilnError, match="a batch of 64 cannot be shared by 3 devices; give --batch-size"):
        loop.prepare(job, 3)


def test_more_devices_than_the_process_began_with_is_an_error():
    keras = loop.keras_namespace()
    keras.ops.zeros(1)
    with pytest.raises(KilnError, match="--devices 7: a process can train"), devices.spread(keras, 7):
        pass


def test_tensorboard_gets_the_figures_of_each_epoch(tmp_path):
    from tensorboardX.proto import event_pb2
    from tensorboardX.record_writer import masked_crc32c

    row = {"epoch": 1, "loss": 2.0, "accuracy": 0.25, "val_loss": 1.5, "val_accuracy": 0.5, "images_per_s": 9.0}
    with tensorboard.logs(tmp_path) as on_epoch:
        on_epoch(row)
        on_epoch(row | {"epoch": 2, "loss": 1.0})
    content = next(tmp_path.glob("events.*")).read_bytes()
    seen: dict[tuple[str, int], float] = {}
    while content:  # TFRecord: length, its checksum, the event, its checksum
        length = int.from_bytes(content[:8], "little")
        record = content[12 : 12 + length]
        assert int.from_bytes(content[12 + length : 16 + length], "little") == masked_crc32c(record)
        event = event_pb2.Event.FromString(record)
        seen |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        content = content[16 + length :]
    assert seen["loss/training", 1] == 2.0 and seen["loss/training", 2] == 1.0
    assert seen["accuracy/validation", 2] == 0.5 and seen["run/images_per_s", 1] == 9.0


@pytest.mark.parametrize(
    ("flags", "backend", "gains"),
    [
        ({"avx512_bf16"}, "tensorflow", True),
        ({"amx_bf16"}, "tensorflow", True),
        ({"avx512f"}, "tensorflow", False),
        ({"avx512_bf16"}, "jax", False),
    ],
)
def test_bfloat16_is_for_processors_made_for_it(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], backend: str, gains: bool
) -> None:
    monkeypatch.setattr(catalog, "processor", lambda: ("a processor", frozenset(flags)))
    keras = SimpleNamespace(backend=SimpleNamespace(backend=lambda: backend))
    monkeypatch.setattr(devices, "gpus", lambda _: [])
    assert devices.gains_from_bfloat16(keras) is gains
    assert devices.compiles(keras, 1) is (backend == "jax")
    monkeypatch.setattr(devices, "gpus", lambda _: ["gpu:0", "gpu:1"])
    assert devices.gains_from_bfloat16(keras) and devices.compiles(keras, 1)
    assert devices.compiles(keras, 2) is (backend == "jax")
