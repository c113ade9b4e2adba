"""The manifests fit their schemas, each other, and the service's own settings and routes."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from catalog import ROOT
from serving.http import admission
from serving.models import control
from serving.routes import openapi
from serving.settings import PREFIX, Settings
from serving.v2 import openapi as openapi_v2

SCHEMA = json.loads((ROOT / "deploy" / "schemas" / "manifests.json").read_text())
MANIFESTS = {
    f"{path.stem}-{document['kind']}": document
    for path in sorted((ROOT / "deploy").glob("k*/*.yaml"))
    for document in yaml.safe_load_all(path.read_text())
}
KUBERNETES = ("1.31", "1.34", kubernetes_validate.latest_version())  # autoscaling/v2 and all else the manifests use
PREDICTORS_OWN = {"minReplicas", "maxReplicas", "containerConcurrency", "timeout"}  # KServe's; test_v2.py asks KServe
PROCESS_BYTES = 200_000_000  # the parent, or a worker with the zoo loaded, rounded up
KINDS = {"Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler", "InferenceService"}


def of(kind: str) -> dict[str, Any]:
    (found,) = [document for document in MANIFESTS.values() if document["kind"] == kind]
    return dict(found)


def containers() -> list[dict[str, Any]]:
    inference = of("InferenceService")["spec"]["predictor"]
    return [*of("Deployment")["spec"]["template"]["spec"]["containers"], *inference["containers"]]


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert {document["kind"] for document in MANIFESTS.values()} == KINDS


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_fits(name: str) -> None:
    jsonschema.validate(MANIFESTS[name], SCHEMA)


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_fits_the_schemas_that_kubernetes_publishes(name: str, version: str) -> None:
    kubernetes_validate.validate(as_kubernetes_has_it(MANIFESTS[name]), version, strict=True)


def as_kubernetes_has_it(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest, or of an InferenceService the pod that its predictor describes."""
    if manifest["kind"] != "InferenceService":
        return manifest
    pod = {name: value for name, value in manifest["spec"]["predictor"].items() if name not in PREDICTORS_OWN}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": manifest["metadata"], "spec": pod}


@pytest.mark.parametrize("kind", ["Deployment", "InferenceService"])
def test_a_field_that_kubernetes_does_not_know_is_found(kind: str) -> None:
    broken = copy.deepcopy(as_kubernetes_has_it(of(kind)))
    pod = broken["spec"]["template"]["spec"] if kind == "Deployment" else broken["spec"]
    pod["containers"][0]["readinessProbe"]["periodSecond"] = 1
    with pytest.raises(jsonschema.ValidationError, match="periodSecond"):
        kubernetes_validate.validate(broken, KUBERNETES[-1], strict=True)


def test_slips_of_the_pen_are_found() -> None:
    for change in (
        lambda pod: pod.update(terminationGracePeriod=40),
        lambda pod: pod["containers"][0].pop("image"),
        lambda pod: pod["containers"][0]["env"][0].update(value=2),
        lambda pod: pod["containers"][0]["readinessProbe"]["httpGet"].update(path="readyz"),
        lambda pod: pod["containers"][0]["resources"]["limits"].update(memory="1 GB"),
    ):
        broken = copy.deepcopy(of("Deployment"))
        change(broken["spec"]["template"]["spec"])
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, SCHEMA)


def test_labels_ports_and_names_meet() -> None:
    deployment, service = of("Deployment"), of("Service")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels == service["spec"]["selector"]
    assert of("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    assert of("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    pod = deployment["spec"]["template"]["spec"]
    assert service["spec"]["ports"][0]["targetPort"] == pod["containers"][0]["ports"][0]["name"]
    mounted = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_settings_and_probes_are_the_services() -> None:
    described = openapi.describe(Settings(), openapi_v2.paths(), openapi_v2.schemas())["paths"]
    for container in containers():
        told = {entry["name"]: entry.get("value", "") for entry in container["env"] if entry["name"].startswith(PREFIX)}
        settings = Settings.from_environment(told)
        assert {name.removeprefix(PREFIX).lower() for name in told} <= {f.name for f in dataclasses.fields(Settings)}
        assert settings.workers * settings.threads <= int(container["resources"]["limits"]["cpu"])
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if probe in container:
                assert "get" in described[container[probe]["httpGet"]["path"]]


def test_the_worst_case_fits_into_the_memory_and_the_copies_into_their_volume() -> None:
    for container in containers():
        told = {entry["name"]: entry.get("value", "") for entry in container["env"]}
        settings = Settings.from_environment(told)
        bodies = (1 + admission.SENDING) * settings.max_inflight * settings.max_body_bytes  # in work, and on their way
        decoded = settings.pool_threads * 16 * settings.max_pixels
        needed = PROCESS_BYTES + settings.workers * (PROCESS_BYTES + bodies + decoded)
        assert needed <= amount(container["resources"]["limits"]["memory"])
    (volume,) = [v for v in of("Deployment")["spec"]["template"]["spec"]["volumes"] if v["name"] == "scratch"]
    served = sum(file.stat().st_size for file in (ROOT / "zoo").glob("*/variants/*/*"))
    assert (control.KEPT + 1) * served <= amount(volume["emptyDir"]["sizeLimit"])


def amount(quantity: str) -> int:
    """Bytes of a quantity in Mi or Gi."""
    return int(quantity[:-2]) << {"Mi": 20, "Gi": 30}[quantity[-2:]]


def test_the_pod_waits_longer_than_the_service_and_the_balancer_notices_in_time() -> None:
    pod = of("Deployment")["spec"]["template"]["spec"]
    container = pod["containers"][0]
    settings = Settings.from_environment({entry["name"]: entry.get("value", "") for entry in container["env"]})
    assert pod["terminationGracePeriodSeconds"] > settings.grace_s > settings.drain_s
    probe = container["readinessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] < settings.drain_s
    concurrency = of("InferenceService")["spec"]["predictor"]["containerConcurrency"]
    assert concurrency == int({e["name"]: e["value"] for e in containers()[1]["env"]}["MODELKILN_MAX_INFLIGHT"])
