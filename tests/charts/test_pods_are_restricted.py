"""Every pod that results from the charts fits Pod Security "restricted" and what we ask on top."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import restricted
from pods import Pod, all_pods, pods_of
from render import ALL, CASES
from restricted import Rule

Spec = dict[str, Any]


def breach(path: str, value: Any) -> Callable[[Spec], None]:
    """Set what lies at a path of keys and indices."""

    def apply(spec: Spec) -> None:
        *steps, last = [int(step) if step.isdigit() else step for step in path.split("/")]
        place: Any = spec
        for step in steps:
            place = place[step] if isinstance(step, int) else place.setdefault(step, {})
        if isinstance(place, list):
            place.insert(last, value)
        elif value is None:
            place.pop(last)
        else:
            place[last] = value

    return apply


CONTAINER = "containers/0"
CONTEXT = f"{CONTAINER}/securityContext"
# Each rule with ways to break it, on a pod that keeps it: a rule that finds nothing proves nothing.
RULES: dict[Rule, tuple[str, list[Callable[[Spec], None]]]] = {
    restricted.no_host_namespaces: (
        "worker",
        [breach("hostNetwork", True), breach("hostPID", True), breach("hostIPC", True)],
    ),
    restricted.no_windows_and_no_host_process: (
        "worker",
        [breach("os/name", "windows"), breach(f"{CONTEXT}/windowsOptions/hostProcess", True)],
    ),
    restricted.no_privileged_containers: ("worker", [breach(f"{CONTEXT}/privileged", True)]),
    restricted.no_host_ports: ("worker", [breach(f"{CONTAINER}/ports/0/hostPort", 80)]),
    restricted.no_probe_or_hook_of_another_host: (
        "worker",
        [
            breach(f"{CONTAINER}/livenessProbe/httpGet/host", "169.254.169.254"),
            breach(f"{CONTAINER}/lifecycle/preStop/tcpSocket/host", "169.254.169.254"),
        ],
    ),
    restricted.app_armor_is_not_switched_off: ("worker", [breach(f"{CONTEXT}/appArmorProfile/type", "Unconfined")]),
    restricted.selinux_is_the_containers_own: (
        "worker",
        [breach(f"{CONTEXT}/seLinuxOptions/type", "spc_t"), breach("securityContext/seLinuxOptions/user", "root")],
    ),
    restricted.proc_is_masked: ("worker", [breach(f"{CONTEXT}/procMount", "Unmasked")]),
    restricted.sysctls_are_safe: (
        "worker",
        [breach("securityContext/sysctls/0", {"name": "kernel.sem", "value": "1"})],
    ),
    restricted.volumes_are_of_harmless_types: (
        "worker",
        [
            breach("volumes/0", {"name": "disk", "hostPath": {"path": "/"}}),
            breach("volumes/0", {"name": "n", "nfs": {}}),
        ],
    ),
    restricted.privileges_do_not_grow: (
        "worker",
        [breach(f"{CONTEXT}/allowPrivilegeEscalation", True), breach(f"{CONTEXT}/allowPrivilegeEscalation", None)],
    ),
    restricted.nobody_is_root: (
        "worker",
        [
            breach(f"{CONTEXT}/runAsNonRoot", False),
            breach(f"{CONTEXT}/runAsUser", 0),
            breach("securityContext/runAsUser", 0),
            breach("initContainers", [{"name": "init", "securityContext": {"runAsUser": 0}}]),
        ],
    ),
    restricted.seccomp_is_on: ("worker", [breach(f"{CONTEXT}/seccompProfile/type", "Unconfined")]),
    restricted.capabilities_are_dropped: (
        "worker",
        [breach(f"{CONTEXT}/capabilities/drop", ["CHOWN"]), breach(f"{CONTEXT}/capabilities/add", ["NET_ADMIN"])],
    ),
    restricted.user_and_group_are_ours: ("worker", [breach(f"{CONTEXT}/runAsGroup", 0)]),
    restricted.root_file_system_is_read_only: ("worker", [breach(f"{CONTEXT}/readOnlyRootFilesystem", None)]),
    restricted.scratch_space_has_a_bound: ("worker", [breach("volumes/0/emptyDir/sizeLimit", None)]),
    restricted.resources_are_bounded: (
        "worker",
        [
            breach(f"{CONTAINER}/resources/{key}/{resource}", None)
            for key in ("requests", "limits")
            for resource in ("cpu", "memory", "ephemeral-storage")
        ],
    ),
    restricted.no_token_is_mounted: (
        "worker",
        [
            breach("automountServiceAccountToken", None),
            breach("volumes/0", {"name": "token", "projected": {"sources": [{"serviceAccountToken": {}}]}}),
        ],
    ),
    restricted.the_account_is_its_own: ("worker", [breach("serviceAccountName", None)]),
    restricted.no_service_links: ("worker", [breach("enableServiceLinks", None)]),
    restricted.images_have_a_version: (
        "worker",
        [
            breach(f"{CONTAINER}/image", "localhost:5001/daskyard/jobs"),
            breach(f"{CONTAINER}/image", "localhost:5001/daskyard/jobs:latest"),
        ],
    ),
    restricted.images_do_not_change_under_their_name: (
        "worker",
        [breach(f"{CONTAINER}/imagePullPolicy", "IfNotPresent")],
    ),
    restricted.no_credentials_in_env: (
        "worker",
        [
            breach(f"{CONTAINER}/env/0", {"name": "AWS_SECRET_ACCESS_KEY", "value": "hunter2"}),
            breach(f"{CONTAINER}/env/0", {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s3", "key": "key"}}}),
            breach(f"{CONTAINER}/envFrom", [{"secretRef": {"name": "s3"}}]),
        ],
    ),
    restricted.the_scheduler_holds_no_secret: (
        "scheduler",
        [breach("volumes/0", {"name": "credentials", "secret": {"secretName": "s3"}})],
    ),
    restricted.workers_leave_in_order: (
        "worker",
        [
            breach(f"{CONTAINER}/lifecycle/preStop", None),
            breach("terminationGracePeriodSeconds", None),
            breach("terminationGracePeriodSeconds", 30),
        ],
    ),
    restricted.what_stays_up_is_probed: (
        "worker",
        [breach(f"{CONTAINER}/livenessProbe", None), breach(f"{CONTAINER}/readinessProbe", None)],
    ),
    restricted.a_run_is_started_once: (
        "job-runner",
        [breach("restartPolicy", None), breach("restartPolicy", "OnFailure")],
    ),
    restricted.env_names_are_unique: (
        "worker",
        [breach(f"{CONTAINER}/env/0", {"name": "DASK_WORKER_NAME", "value": "me"})],
    ),
}


def name_of(rule: Rule) -> str:
    return rule.__name__


def pod_of(component: str) -> Pod:
    return next(pod for pod in all_pods() if pod.where == "daskjob on kind" and pod.component == component)


@pytest.mark.parametrize("rule", RULES, ids=name_of)
def test_every_pod_keeps(rule: Rule) -> None:
    problems = [f"{pod}: {problem}" for pod in all_pods() for problem in rule(pod)]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    ("rule", "component", "break_it"),
    [
        pytest.param(rule, component, break_it, id=f"{name_of(rule)}-{number}")
        for rule, (component, breaches) in RULES.items()
        for number, break_it in enumerate(breaches, 1)
    ],
)
def test_a_pod_is_found_that_breaks(rule: Rule, component: str, break_it: Callable[[Spec], None]) -> None:
    pod = pod_of(component)
    assert not list(rule(pod))
    spec = copy.deepcopy(pod.spec)
    break_it(spec)
    assert list(rule(replace(pod, spec=spec)))


def test_every_rule_is_listed_here() -> None:
    rules = {
        value
        for name, value in vars(restricted).items()
        if callable(value) and getattr(value, "__module__", "") == "restricted" and not name.startswith("_")
    }
    assert rules == set(RULES)


@pytest.mark.parametrize("name", ALL)
def test_a_case_has_the_pods_that_it_should(name: str) -> None:
    expected = {
        "platform": {"daskyard-operator", "daskyard-controller", "daskyard-release-finalizers"},
        "runtime": {"scheduler", "worker", "job-runner"},
        "cluster": {"scheduler", "worker"},
        "daskjob": {"scheduler", "worker", "job-runner"},
    }
    chart = CASES[name].chart if name in CASES else "daskjob"
    assert {pod.component for pod in all_pods() if pod.where == name} == expected[chart]


def test_a_pod_is_found_wherever_it_lies() -> None:
    template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": []}}
    metadata = {"name": "one", "namespace": "team"}
    objects = [
        {"kind": "Deployment", "metadata": metadata, "spec": {"template": template}},
        {"kind": "Job", "metadata": metadata, "spec": {"template": template}},
        {"kind": "CronJob", "metadata": metadata, "spec": {"jobTemplate": {"spec": {"template": template}}}},
        {"kind": "Pod", "metadata": metadata | template["metadata"], "spec": template["spec"]},
        {"kind": "ConfigMap", "metadata": metadata},
    ]
    found = list(pods_of("here", objects))
    assert [pod.kind for pod in found] == ["Deployment", "Job", "CronJob", "Pod"]
    assert all(pod.labels == {"a": "b"} and pod.spec == template["spec"] for pod in found)
