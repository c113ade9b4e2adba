"""Each augmentation alone, and the pipeline: bounds, labels, and that equal seeds give equal images."""

import numpy as np
import pytest

from catalog import Recipe
from training import augment as a


@pytest.fixture
def images():
    return np.random.default_rng(1).integers(0, 256, (257, 32, 32, 3), dtype=np.uint8)


def targets(n: int) -> np.ndarray:
    return np.eye(10, dtype=np.float32)[np.arange(n) % 10]


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def test_crop_and_flip_gives_windows_of_the_reflected_image(images):
    out = a.crop_and_flip(images, rng())
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)), mode="reflect")
    seen = set()
    for image, source in zip(out[:40], padded[:40], strict=True):
        hits = {
            (i, j, mirror)
            for i in range(9)
            for j in range(9)
            for mirror in (False, True)
            if np.array_equal(image, source[i : i + 32, j : j + 32][:, :: -1 if mirror else 1])
        }
        assert len(hits) == 1
        seen |= hits
    assert len(seen) > 25 and {mirror for *_, mirror in seen} == {False, True}


def test_jitter_changes_colour_but_no_grey_image_gets_a_hue(images):
    assert 2 < np.abs(a.jitter(images, rng()).astype(int) - images).mean() < 60
    grey = np.repeat(images[..., :1], 3, axis=3)
    out = a.jitter(grey, rng()).astype(int)
    assert np.abs(out - out.mean(axis=3, keepdims=True)).max() <= 1
    still = a.jitter(images, rng(), strength=0.0, hue=0.0)
    assert np.abs(still.astype(int) - images).max() <= 1


def test_jitter_is_brightness_contrast_saturation_and_hue_one_after_the_other(images):
    n, draws = len(images), rng()
    bright, contrast, saturation = draws.uniform(0.8, 1.2, (3, n, 1, 1, 1))
    turn = draws.uniform(-0.05, 0.05, n)
    grey = np.array([0.299, 0.587, 0.114])
    z = images * bright
    mean = (z @ grey).mean(axis=(1, 2))[:, None, None, None]
    z = contrast * (z - mean) + mean
    luma = (z @ grey)[..., None]
    z = saturation * (z - luma) + luma
    z = np.einsum("nhwc,ndc->nhwd", z, a._hue_matrix(turn))
    expected = np.clip(np.rint(z), 0, 255).astype(int)
    off = np.abs(a.jitter(images, rng()) - expected)
    assert off.max() <= 1 and (off > 0).mean() < 1e-4


def test_cutout_erases_a_square_of_the_side_asked_for(images):
    out = a.cutout(images, 8, rng())
    changed = (out != images).any(axis=3)
    assert (out[changed] == 128).all()
    assert changed.sum(axis=(1, 2)).min() >= 16 and changed.sum(axis=(1, 2)).max() <= 64


def test_mixup_blends_images_and_labels_by_the_same_share():
    flat = np.zeros((64, 4, 4, 3), np.uint8)
    flat[1::2] = 250
    y = np.zeros((64, 2), np.float32)
    y[np.arange(64), np.arange(64) % 2] = 1
    x, mixed = a.mixup(flat, y, 1.0, rng())
    assert np.allclose(mixed.sum(axis=1), 1)
    assert np.allclose(x[:, 0, 0, 0] / 250, mixed[:, 1], atol=0.01)
    assert ((mixed > 0.05) & (mixed < 0.95)).any()


def test_cutmix_shares_the_label_by_the_pasted_area():
    flat = np.zeros((64, 16, 16, 3), np.uint8)
    flat[1::2] = 250
    y = np.zeros((64, 2), np.float32)
    y[np.arange(64), np.arange(64) % 2] = 1
    x, mixed = a.cutmix(flat, y, 1.0, rng())
    assert np.allclose((x[..., 0] == 250).mean(axis=(1, 2)), mixed[:, 1], atol=1e-6)
    assert ((mixed > 0.05) & (mixed < 0.95)).any()


@pytest.mark.parametrize(("height", "width"), [(16, 16), (24, 24), (32, 32), (48, 48), (24, 40)])
def test_resize_keeps_mean_and_flat_colour(images, height, width):
    out = a.resize(images, height, width)
    assert out.shape == (len(images), height, width, 3) and out.dtype == np.uint8
    assert abs(out.mean() - images.mean()) < 1
    assert (a.resize(np.full((2, 32, 32, 3), 77, np.uint8), height, width) == 77).all()


FULL = Recipe(augment="advanced", cutout=8, mixup=0.2, cutmix=1.0)


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(augment="basic"), Recipe(augment="advanced"), FULL])
def test_pipeline_repeats_itself_and_leaves_its_input_alone(images, recipe):
    before = images.copy()
    first, second = (a.augment(recipe, images, targets(len(images)), rng()) for _ in range(2))
    assert np.array_equal(first[0], second[0]) and np.array_equal(first[1], second[1])
    assert np.array_equal(images, before)
    assert first[0].shape == images.shape and first[0].dtype == np.uint8
    assert first[1].dtype == np.float32 and np.allclose(first[1].sum(axis=1), 1, atol=1e-6)
    assert np.array_equal(first[0], images) == (recipe == Recipe())
