"""Every object that is rendered, and every object that is made of it, is one that an API server takes."""

from __future__ import annotations

import copy
import re
from collections import Counter
from functools import cache

import kubernetes_validate
import pytest
from expand import DASK, OURS, everything, expand
from kubernetes_validate import utils
from pods import pods_of
from render import ALL, Object, render
from resource_definitions import problems_of

VERSIONS = ("1.32", "1.33", "1.34", "1.35", "1.36", "1.37")
# The Prometheus operator's schemas are no part of Kubernetes, and no package holds them.
WITHOUT_SCHEMA = {"monitoring.coreos.com/v1": "the Prometheus operator's schemas are no part of Kubernetes"}
DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")


@pytest.fixture(scope="module", autouse=True)
def _read_each_schema_once() -> None:
    # The package reads 2 MB of JSON for each object that it validates.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "schema_contents", cache(utils.schema_contents))
        yield


def of_kubernetes(name: str) -> list[Object]:
    return [obj for obj in everything(name) if obj["apiVersion"] not in (DASK, OURS, *WITHOUT_SCHEMA)]


def custom(name: str) -> list[Object]:
    return [obj for obj in everything(name) if obj["apiVersion"] in (DASK, OURS)]


def title(obj: Object) -> str:
    return f"{obj['kind']} {obj['metadata']['name']}"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ALL)
def test_objects_fit_the_schemas_of_kubernetes(name: str, version: str) -> None:
    objects = of_kubernetes(name)
    assert objects
    for obj in objects:
        try:
            used = kubernetes_validate.validate(obj, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            pytest.fail(f"{title(obj)}: {'.'.join(map(str, error.path))}: {error.message}")
        assert used == version, "the package has no schemas of this version and took older ones"


@pytest.mark.parametrize("version", VERSIONS)
def test_an_unknown_key_is_found(version: str) -> None:
    deployment = copy.deepcopy(next(obj for obj in expand("cluster on kind") if obj["kind"] == "Deployment"))
    deployment["spec"]["template"]["spec"]["containers"][0]["imagePulPolicy"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError, match="imagePulPolicy"):
        kubernetes_validate.validate(deployment, version, strict=True)


@pytest.mark.parametrize("name", ALL)
def test_custom_resources_fit_their_definitions_and_nothing_of_them_is_pruned(name: str) -> None:
    problems = [f"{title(obj)}: {problem}" for obj in custom(name) for problem in problems_of(obj)]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("schedulingGates", [{"name": "queue"}], "schedulingGates"),  # younger than the definitions
        ("hostUsers", False, "hostUsers"),
        ("terminationGracePeriodSeconds", "90", "'90' is not of type 'integer'"),
    ],
)
def test_a_key_that_would_be_pruned_is_found(key: str, value: object, problem: str) -> None:
    cluster = copy.deepcopy(next(obj for obj in render("cluster on kind") if obj["kind"] == "DaskCluster"))
    cluster["spec"]["worker"]["spec"][key] = value
    assert [found for found in problems_of(cluster) if problem in found]


@pytest.mark.parametrize("name", ALL)
def test_objects_have_a_namespace_and_a_name_of_their_own(name: str) -> None:
    objects = everything(name)
    cluster_wide = ("Namespace", "ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition")
    assert all(obj["metadata"].get("namespace") for obj in objects if not obj["kind"].startswith(cluster_wide))
    count = Counter((obj["kind"], obj["metadata"].get("namespace"), obj["metadata"]["name"]) for obj in objects)
    assert not [key for key, number in count.items() if number > 1]


@pytest.mark.parametrize("name", ALL)
def test_names_and_labels_are_such_as_an_api_server_takes(name: str) -> None:
    # Schemas say no more than "string": a label of 64 characters ends as FailedCreate.
    for obj in everything(name):
        metadata = obj["metadata"]
        if obj["kind"] in ("Service", "Pod", "Namespace", "ConfigMap"):
            assert DNS_LABEL.fullmatch(metadata["name"]), title(obj)
        for key, value in metadata.get("labels", {}).items():
            assert LABEL_VALUE.fullmatch(value), f"{title(obj)}: label {key}: {value}"


@pytest.mark.parametrize("name", ALL)
def test_a_selector_matches_the_pods_of_its_own_template(name: str) -> None:
    for obj in everything(name):
        selector = obj.get("spec", {}).get("selector", {})
        if obj["kind"] == "Deployment":
            labels = obj["spec"]["template"]["metadata"]["labels"]
            assert selector["matchLabels"].items() <= labels.items(), title(obj)


@pytest.mark.parametrize("name", ALL)
def test_a_service_finds_pods_and_the_ports_that_it_names(name: str) -> None:
    templates = [obj["spec"]["template"] for obj in everything(name) if obj["kind"] == "Deployment"]
    for service in (obj for obj in everything(name) if obj["kind"] == "Service"):
        chosen = [
            template["spec"]
            for template in templates
            if service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
        ]
        assert chosen, f"{title(service)}: selects no pod"
        for spec in chosen:
            names = {port["name"] for container in spec["containers"] for port in container.get("ports", [])}
            assert {port["targetPort"] for port in service["spec"]["ports"]} <= names, title(service)


@pytest.mark.parametrize("name", ALL)
def test_what_a_pod_refers_to_is_there(name: str) -> None:
    there = {(obj["kind"], obj["metadata"].get("namespace"), obj["metadata"]["name"]) for obj in everything(name)}
    for pod in pods_of(name, everything(name)):
        assert ("ServiceAccount", pod.namespace, pod.spec["serviceAccountName"]) in there, pod
        for volume in pod.spec.get("volumes", []):
            if "configMap" in volume:
                assert ("ConfigMap", pod.namespace, volume["configMap"]["name"]) in there, pod
        mounts = {mount["name"] for container in pod.containers for mount in container.get("volumeMounts", [])}
        assert mounts == {volume["name"] for volume in pod.spec.get("volumes", [])}, pod


@pytest.mark.parametrize("name", [name for name in ALL if name.startswith("platform")])
def test_a_binding_binds_a_role_that_is_there(name: str) -> None:
    there = {(obj["kind"], obj["metadata"].get("namespace"), obj["metadata"]["name"]) for obj in everything(name)}
    bindings = [obj for obj in everything(name) if obj["kind"].endswith("RoleBinding")]
    assert bindings
    for binding in bindings:
        role = binding["roleRef"]
        namespace = binding["metadata"].get("namespace") if role["kind"] == "Role" else None
        assert (role["kind"], namespace, role["name"]) in there, title(binding)


@pytest.mark.parametrize("name", ALL)
def test_nothing_secret_is_rendered(name: str) -> None:
    assert not [title(obj) for obj in everything(name) if obj["kind"] == "Secret"]
