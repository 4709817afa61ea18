"""What we ask of every pod: Pod Security "restricted" as of Kubernetes 1.37, and more.

Each rule is a function of a pod that yields what is wrong with it. The profile is cumulative: "restricted" holds all
that "baseline" holds. Windows pods are not covered: none of ours says `os: windows`, and a rule says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from pods import Pod

Rule = Callable[[Pod], Iterator[str]]

_SAFE_SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
}
_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
_SELINUX_TYPES = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
_PROFILES = ("RuntimeDefault", "Localhost")
# These talk to the Kubernetes API; nothing else of ours does.
_HOLDS_A_TOKEN = {"daskyard-operator", "daskyard-controller", "daskyard-release-finalizers"}


def _contexts(pod: Pod) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "pod", pod.spec.get("securityContext", {})
    for container in pod.containers:
        yield container["name"], container.get("securityContext", {})


# Pod Security, baseline.


def no_host_namespaces(pod: Pod) -> Iterator[str]:
    yield from (key for key in ("hostNetwork", "hostPID", "hostIPC") if pod.spec.get(key))


def no_windows_and_no_host_process(pod: Pod) -> Iterator[str]:
    if pod.spec.get("os", {}).get("name", "linux") != "linux":
        yield "os"
    for name, context in _contexts(pod):
        if "windowsOptions" in context:
            yield f"{name}: windowsOptions"


def no_privileged_containers(pod: Pod) -> Iterator[str]:
    yield from (name for name, context in _contexts(pod) if context.get("privileged"))


def no_host_ports(pod: Pod) -> Iterator[str]:
    for container in pod.containers:
        yield from (f"{container['name']}: {port}" for port in container.get("ports", []) if port.get("hostPort"))


def no_probe_or_hook_of_another_host(pod: Pod) -> Iterator[str]:
    """A kubelet would send requests to any address on the pod's behalf."""
    for container in pod.containers:
        handlers = {key: container[key] for key in container if key.endswith("Probe")} | container.get("lifecycle", {})
        for key, handler in handlers.items():
            if any(handler.get(way, {}).get("host") for way in ("httpGet", "tcpSocket")):
                yield f"{container['name']}: {key}"


def app_armor_is_not_switched_off(pod: Pod) -> Iterator[str]:
    for name, context in _contexts(pod):
        if context.get("appArmorProfile", {}).get("type", "RuntimeDefault") not in _PROFILES:
            yield name


def selinux_is_the_containers_own(pod: Pod) -> Iterator[str]:
    for name, context in _contexts(pod):
        options = context.get("seLinuxOptions", {})
        if options.get("type", "") not in _SELINUX_TYPES or options.get("user") or options.get("role"):
            yield name


def proc_is_masked(pod: Pod) -> Iterator[str]:
    yield from (name for name, context in _contexts(pod) if context.get("procMount", "Default") != "Default")


def sysctls_are_safe(pod: Pod) -> Iterator[str]:
    sysctls = {entry["name"] for entry in pod.spec.get("securityContext", {}).get("sysctls", [])}
    yield from sorted(sysctls - _SAFE_SYSCTLS)


# Pod Security, restricted.


def volumes_are_of_harmless_types(pod: Pod) -> Iterator[str]:
    for volume in pod.spec.get("volumes", []):
        if not volume.keys() - {"name"} <= _VOLUMES:
            yield volume["name"]


def privileges_do_not_grow(pod: Pod) -> Iterator[str]:
    for container in pod.containers:
        if container.get("securityContext", {}).get("allowPrivilegeEscalation") is not False:
            yield container["name"]


def nobody_is_root(pod: Pod) -> Iterator[str]:
    """The pod's word counts where a container says nothing; a container's word counts always."""
    pods_own = pod.spec.get("securityContext", {})
    for container in pod.containers:
        context = pods_own | container.get("securityContext", {})
        if context.get("runAsNonRoot") is not True or context.get("runAsUser") == 0:
            yield container["name"]
    if pods_own.get("runAsUser") == 0:
        yield "pod"


def seccomp_is_on(pod: Pod) -> Iterator[str]:
    pods_own = pod.spec.get("securityContext", {})
    for container in pod.containers:
        context = pods_own | container.get("securityContext", {})
        if context.get("seccompProfile", {}).get("type") not in _PROFILES:
            yield container["name"]


def capabilities_are_dropped(pod: Pod) -> Iterator[str]:
    for container in pod.containers:
        capabilities = container.get("securityContext", {}).get("capabilities", {})
        if "ALL" not in capabilities.get("drop", []) or set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
            yield container["name"]


# What we ask beyond the profile.


def user_and_group_are_ours(pod: Pod) -> Iterator[str]:
    """The images' user; a number, so that the kubelet can tell that it is not root."""
    pods_own = pod.spec.get("securityContext", {})
    for container in pod.containers:
        context = pods_own | container.get("securityContext", {})
        if (context.get("runAsUser"), context.get("runAsGroup")) != (10001, 10001):
            yield container["name"]


def root_file_system_is_read_only(pod: Pod) -> Iterator[str]:
    for container in pod.containers:
        if container.get("securityContext", {}).get("readOnlyRootFilesystem") is not True:
            yield container["name"]


def scratch_space_has_a_bound(pod: Pod) -> Iterator[str]:
    for volume in pod.spec.get("volumes", []):
        if "emptyDir" in volume and not volume["emptyDir"].get("sizeLimit"):
            yield volume["name"]


def resources_are_bounded(pod: Pod) -> Iterator[str]:
    """CPU, memory, ephemeral storage: requested, and limited."""
    for container in pod.containers:
        for key in ("requests", "limits"):
            given = container.get("resources", {}).get(key, {})
            for resource in ("cpu", "memory", "ephemeral-storage"):
                if not given.get(resource):
                    yield f"{container['name']}: {key}.{resource}"


def no_token_is_mounted(pod: Pod) -> Iterator[str]:
    if pod.component in _HOLDS_A_TOKEN:
        return
    if pod.spec.get("automountServiceAccountToken") is not False:
        yield "automountServiceAccountToken"
    for volume in pod.spec.get("volumes", []):
        if any("serviceAccountToken" in source for source in volume.get("projected", {}).get("sources", [])):
            yield volume["name"]


def the_account_is_its_own(pod: Pod) -> Iterator[str]:
    if pod.spec.get("serviceAccountName", "default") == "default":
        yield "serviceAccountName"


def no_service_links(pod: Pod) -> Iterator[str]:
    """Services of the namespace would become env: PORT, HOST and the like of strangers."""
    if pod.spec.get("enableServiceLinks") is not False:
        yield "enableServiceLinks"


def images_have_a_version(pod: Pod) -> Iterator[str]:
    for container in pod.containers:
        image = container["image"]
        tag = re.fullmatch(r".+:([\w.-]+)", image.rsplit("/", 1)[-1])
        if "@sha256:" not in image and (tag is None or tag[1] == "latest"):
            yield f"{container['name']}: {image}"


def images_do_not_change_under_their_name(pod: Pod) -> Iterator[str]:
    """A tag moves: what is named by tag is pulled each time."""
    for container in pod.containers:
        if "@sha256:" not in container["image"] and container.get("imagePullPolicy") != "Always":
            yield container["name"]


def no_credentials_in_env(pod: Pod) -> Iterator[str]:
    for container in pod.containers:
        for entry in container.get("env", []):
            is_ref = "secretKeyRef" in entry.get("valueFrom", {})
            if is_ref or re.search(r"SECRET|TOKEN|PASSWORD|ACCESS_KEY", entry["name"]):
                yield f"{container['name']}: {entry['name']}"
        yield from (f"{container['name']}: envFrom" for _ in container.get("envFrom", []))


def the_scheduler_holds_no_secret(pod: Pod) -> Iterator[str]:
    if pod.component == "scheduler":
        yield from (volume["name"] for volume in pod.spec.get("volumes", []) if "secret" in volume)


def workers_leave_in_order(pod: Pod) -> Iterator[str]:
    """A worker that is killed takes its results along: it retires first, and is given the time."""
    if pod.component != "worker":
        return
    (container,) = pod.spec["containers"]
    hook = {"exec": {"command": ["python", "-P", "-m", "jobs.pods.retire"]}}
    if container.get("lifecycle", {}).get("preStop") != hook:
        yield "lifecycle.preStop"
    if pod.spec.get("terminationGracePeriodSeconds", 30) < 60:
        yield "terminationGracePeriodSeconds"


def what_stays_up_is_probed(pod: Pod) -> Iterator[str]:
    """Runners and hooks end by themselves, so nothing asks whether they live."""
    if pod.kind == "Deployment":
        for container in pod.spec["containers"]:
            yield from (key for key in ("livenessProbe", "readinessProbe") if key not in container)


def a_run_is_started_once(pod: Pod) -> Iterator[str]:
    """Whether another try is worth it is the runner's to say, not the kubelet's."""
    if pod.component == "job-runner" and pod.spec.get("restartPolicy") != "Never":
        yield "restartPolicy"


def env_names_are_unique(pod: Pod) -> Iterator[str]:
    """The API server takes both, and the last one wins."""
    for container in pod.containers:
        names = [entry["name"] for entry in container.get("env", [])]
        yield from sorted({name for name in names if names.count(name) > 1})
