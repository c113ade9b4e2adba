"""Ray, for work that is many trainings: on this machine, or on the cluster that RAY_ADDRESS names."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import catalog
import console
from catalog import ROOT, KilnError

# What a cluster's machines do not need of the checkout; data sets and models lie in shared folders.
_STAYS = [".git", ".venv", "artifacts", "build", "reports", "results", "sweeps", "docs", "zoo"]
_PASSED_ON = ("CIFAR10_DIR", "KERAS_BACKEND", "MODELKILN_CACHE", "MODELKILN_STORE")


@contextmanager
def ray_session(cpus_per_task: int) -> Iterator[Any]:
    """A connection to Ray, ended with the block; gives the `ray` module.

    Raises:
        KilnError: Ray is not installed, or the cluster cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ModuleNotFoundError as error:
        raise KilnError("this needs Ray; run: pip install -r requirements/dev.txt (extra `sweep`)") from error
    address = os.environ.get("RAY_ADDRESS")
    variables = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    variables["MODELKILN_COMMIT"] = catalog.commit()  # the machines have no checkout to ask
    variables |= {"TF_NUM_INTRAOP_THREADS": str(cpus_per_task), "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment: dict[str, Any] = {"env_vars": variables}
    if address:
        environment |= {"working_dir": str(ROOT), "excludes": _STAYS}
    else:
        environment["env_vars"]["PYTHONPATH"] = str(ROOT)
    try:
        ray.init(
            address=address,
            runtime_env=environment,
            include_dashboard=None if address else False,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"the cluster at {address}" if address else "Ray on this machine"
        hint = "; it asks for a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN" if _unauthenticated(error) else ""
        raise KilnError(f"{where} cannot be used: {str(error).splitlines()[0]}{hint}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _unauthenticated(error: BaseException | None) -> bool:
    """Whether this error, or one that caused it, is about a missing token."""
    return error is not None and ("InvalidAuthToken" in str(error) or _unauthenticated(error.__cause__))


def gpus_per_task(ray: Any) -> int:
    """One GPU for each task where the machines have any."""
    return 1 if ray.cluster_resources().get("GPU", 0) else 0


def run_commands(commands: dict[str, list[str]], cpus: int) -> dict[str, tuple[int, str]]:
    """Runs each command as a task of its own, as many at once as fit; exit status and the last line it printed.

    A command is arguments of `python`. A task whose machine is lost is started again elsewhere, and goes on from its
    checkpoint where the store is a folder that all machines see; with `--force` among its arguments it starts over.
    """
    with ray_session(cpus) as ray, console.progress() as bar:

        @ray.remote(num_cpus=cpus, num_gpus=gpus_per_task(ray), max_retries=2)  # type: ignore[untyped-decorator]
        def python(arguments: list[str]) -> tuple[int, str]:
            wide = {**os.environ, "COLUMNS": "500"}
            done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=wide)
            said = (done.stderr if done.returncode else done.stdout).strip().splitlines()
            return done.returncode, said[-1] if said else "nothing printed"

        waiting = {python.remote(arguments): name for name, arguments in commands.items()}
        results: dict[str, tuple[int, str]] = {}
        task = bar.add_task("trained on Ray", total=len(waiting))
        while waiting:
            ready, _ = ray.wait(list(waiting), num_returns=1)
            name = waiting.pop(ready[0])
            try:
                results[name] = ray.get(ready[0])
            except ray.exceptions.RayError as error:
                results[name] = (1, str(error).strip().splitlines()[-1])
            said = results[name][1]
            line = said if said.startswith(name) else f"{name}: {said}"
            bar.console.print(
                line, style="red" if results[name][0] else None, highlight=False, markup=False, soft_wrap=True
            )
            bar.update(task, advance=1)
    return results
