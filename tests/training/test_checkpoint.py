"""Checkpoints alone: which are kept, and what becomes of damaged ones (fault 45)."""

from pathlib import Path

import numpy as np
import pytest

from catalog import KilnError
from training.checkpoint import Checkpoints, State, same_run


def save(checkpoints: Checkpoints, *steps: int) -> None:
    for step in steps:
        checkpoints.save(State({}, 0, step), [np.full(3, step, np.float32)])


def damage(folder: Path, step: int) -> None:
    (folder / f"e00000-s{step:08d}" / "state.npz").write_bytes(b"cut off")


def test_the_last_two_are_kept_and_the_newest_is_read(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 20, 40, 100)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e00000-s00000040", "e00000-s00000100"]
    state, arrays = checkpoints.newest(pytest.fail) or pytest.fail("there is none")
    assert state.step == 100 and (arrays[0] == 100).all()


def test_a_damaged_one_does_not_take_the_place_of_a_whole_one(tmp_path):
    checkpoints, said = Checkpoints(tmp_path), list[str]()
    save(checkpoints, 40, 100)
    damage(tmp_path, 100)
    found = checkpoints.newest(said.append)
    assert found and found[0].step == 40 and len(said) == 1
    save(checkpoints, 50, 60)  # the steps that are trained again
    assert sorted(path.name for path in tmp_path.glob("e*")) == ["e00000-s00000050", "e00000-s00000060"]
    assert (tmp_path / "damaged-e00000-s00000100").is_dir()
    checkpoints.clear()
    assert not tmp_path.exists()


def test_a_state_that_was_altered_is_damaged(tmp_path):
    checkpoints, said = Checkpoints(tmp_path), list[str]()
    save(checkpoints, 40, 100)
    state = tmp_path / "e00000-s00000100" / "state.json"
    state.write_text(state.read_text().replace('"step": 100', '"step": 108'))
    found = checkpoints.newest(said.append)
    assert found and found[0].step == 40 and "its state's sha256" in said[0]


def test_a_run_goes_on_with_its_own_backend_only():
    noted, before = State({"seed": 0, "backend": "jax"}, 0, 1), State({"seed": 0}, 0, 1)
    same_run(noted, {"seed": 0, "backend": "jax"}, "m")
    same_run(before, {"seed": 0, "backend": "tensorflow"}, "m")
    with pytest.raises(KilnError, match="backend was 'jax', is 'tensorflow'"):
        same_run(noted, {"seed": 0, "backend": "tensorflow"}, "m")
    with pytest.raises(KilnError, match="backend was 'tensorflow', is 'jax'"):
        same_run(before, {"seed": 0, "backend": "jax"}, "m")


def test_where_none_is_whole_it_is_said_that_the_run_starts_over(tmp_path):
    checkpoints, said = Checkpoints(tmp_path), list[str]()
    assert checkpoints.newest(said.append) is None and said == []
    save(checkpoints, 10, 20)
    damage(tmp_path, 10)
    damage(tmp_path, 20)
    assert checkpoints.newest(said.append) is None
    assert ["is damaged" in line for line in said[:2]] == [True, True]
    assert said[2] == "no whole checkpoint is left; starting over"
