"""Who may talk to whom, read off the rendered policies: the flows that are listed here, and no others."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from expand import everything
from network import End, allows, connects, holds, policies_of, rules_of
from pods import Pod, pods_of
from render import ALL, CASES

METADATA = "169.254.169.254"
SCHEDULER, DASHBOARD, WORKER, NANNY, WORKER_DASHBOARD = 8786, 8787, 8788, 8789, 8790
TRAINING = (40000, 40999)
PORTS = (22, 53, 80, 443, 6443, SCHEDULER, DASHBOARD, WORKER, NANNY, WORKER_DASHBOARD, 39999, *TRAINING, 41000)
CLUSTERS = [name for name in ALL if name not in CASES or CASES[name].chart != "platform"]
# From, to, ports. Pods of one cluster; what is not here is refused.
FLOWS = {
    ("job-runner", "scheduler"): {SCHEDULER},
    ("worker", "scheduler"): {SCHEDULER},
    ("scheduler", "worker"): {WORKER, NANNY},
    ("worker", "worker"): {WORKER, *TRAINING},
}
DNS = End("kube-system", (("k8s-app", "kube-dns"),))
MINIO = End("minio", (("app.kubernetes.io/name", "minio"),))


def pods(name: str) -> list[Pod]:
    return list(pods_of(name, everything(name)))


def cluster_pods(name: str) -> dict[str, Pod]:
    return {pod.component: pod for pod in pods(name)}


@pytest.mark.parametrize("name", ALL)
def test_every_pod_is_closed_both_ways(name: str) -> None:
    assert pods(name)
    for pod in pods(name):
        for direction in ("Ingress", "Egress"):
            assert policies_of(pod, direction, everything(name)), f"{pod}: {direction} is open"


@pytest.mark.parametrize("name", ALL)
def test_no_rule_opens_everything(name: str) -> None:
    for policy in (obj for obj in everything(name) if obj["kind"] == "NetworkPolicy"):
        title, spec = policy["metadata"]["name"], policy["spec"]
        for rule in spec.get("egress", []):
            assert rule.get("to"), f"{title}: egress to anybody"
        for rule in spec.get("ingress", []):
            assert rule.get("from"), f"{title}: ingress from anybody"
        for rule in (*spec.get("egress", []), *spec.get("ingress", [])):
            assert rule.get("ports"), f"{title}: any port"
            # A port's name is looked up at the pod that receives; in egress, plugins differ in what they make of it.
            assert all(isinstance(port.get("port"), int) for port in rule["ports"]), f"{title}: a port without a number"


@pytest.mark.parametrize("name", ALL)
def test_the_metadata_address_is_refused(name: str) -> None:
    blocks = [
        (policy["metadata"]["name"], peer["ipBlock"])
        for policy in everything(name)
        if policy["kind"] == "NetworkPolicy"
        for rule in policy["spec"].get("egress", [])
        for peer in rule["to"]
        if "ipBlock" in peer
    ]
    for title, block in blocks:
        assert not holds(block, ip_address(METADATA)), f"{title}: {block}"
    for pod in pods(name):
        for port in (80, 443, 8080, 9000):
            assert not allows(pod, "Egress", End(address=METADATA), port, everything(name)), pod


def test_there_is_a_block_that_would_hold_the_metadata_address() -> None:
    rules = [rule for pod in pods("daskjob with everything") for rule in rules_of(pod, "Egress", everything(pod.where))]
    blocks = [peer["ipBlock"] for rule in rules for peer in rule["to"] if "ipBlock" in peer]
    assert {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]} in blocks
    assert holds({"cidr": "0.0.0.0/0"}, ip_address(METADATA))


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_flows_of_a_cluster_are_those_listed(name: str) -> None:
    here = cluster_pods(name)
    for one, sender in here.items():
        for other, receiver in here.items():
            open_ports = {port for port in PORTS if connects(sender, receiver, port, everything(name))}
            assert open_ports == FLOWS.get((one, other), set()), f"{one} to {other}"


@pytest.mark.parametrize("name", CLUSTERS)
def test_clusters_do_not_reach_each_other(name: str) -> None:
    foreign = "daskjob on kind" if name.endswith("everything") else "daskjob with everything"
    objects = (*everything(name), *everything(foreign))
    for sender in cluster_pods(name).values():
        for receiver in cluster_pods(foreign).values():
            assert not [port for port in PORTS if connects(sender, receiver, port, objects)], (sender, receiver)
            assert not [port for port in PORTS if connects(receiver, sender, port, objects)], (receiver, sender)


@pytest.mark.parametrize("name", CLUSTERS)
def test_names_are_looked_up_and_nothing_else_of_kube_system(name: str) -> None:
    for pod in pods(name):
        assert all(allows(pod, "Egress", DNS, 53, everything(name), protocol) for protocol in ("UDP", "TCP"))
        assert not allows(pod, "Egress", DNS, 443, everything(name))
        assert not allows(pod, "Egress", End("kube-system", (("component", "kube-apiserver"),)), 6443, everything(name))


@pytest.mark.parametrize("name", CLUSTERS)
def test_storage_is_reached_by_those_that_need_it(name: str) -> None:
    reach = {pod.component for pod in pods(name) if allows(pod, "Egress", MINIO, 9000, everything(name))}
    assert reach == set(cluster_pods(name)) - {"scheduler"}
    assert not [pod for pod in pods(name) if allows(pod, "Egress", MINIO, 9001, everything(name))]


def test_with_everything_storage_by_address_is_reached_but_by_the_scheduler() -> None:
    name = "daskjob with everything"
    for address, port in (("192.0.2.7", 9000), ("198.51.100.1", 443), ("10.20.1.1", 9000)):
        reach = {
            pod.component for pod in pods(name) if allows(pod, "Egress", End(address=address), port, everything(name))
        }
        assert reach == {"worker", "job-runner"}
    assert not [pod for pod in pods(name) if allows(pod, "Egress", End(address="10.21.0.1"), 9000, everything(name))]


@pytest.mark.parametrize("name", CLUSTERS)
def test_strangers_are_refused(name: str) -> None:
    own = (("app.kubernetes.io/name", "notebooks"),)
    strangers = [End("daskyard", own), End("team-b", own), End("daskyard-system", own), End(address="192.0.2.1")]
    for pod in pods(name):
        for stranger in strangers:
            assert not [port for port in PORTS if allows(pod, "Ingress", stranger, port, everything(name))], stranger


@pytest.mark.parametrize("name", CLUSTERS)
def test_operator_and_controller_reach_schedulers_only(name: str) -> None:
    reach = {"daskyard-operator": {SCHEDULER, DASHBOARD}, "daskyard-controller": {DASHBOARD}}
    platform = [pod for pod in pods("platform on kind") if pod.kind == "Deployment"]
    assert {pod.component for pod in platform} == set(reach)
    for ours in platform:
        assert ours.namespace == "daskyard-system"
        for pod in pods(name):
            objects = (*everything(name), *everything("platform on kind"))
            open_ports = {port for port in PORTS if connects(ours, pod, port, objects)}
            assert open_ports == (reach[ours.component] if pod.component == "scheduler" else set()), pod


def test_prometheus_reads_the_controllers_metrics_where_it_is_named() -> None:
    prometheus = End("monitoring", (("app.kubernetes.io/name", "prometheus"),))
    for pod in pods("platform with everything"):
        open_ports = {
            port for port in (*PORTS, 8080) if allows(pod, "Ingress", prometheus, port, everything(pod.where))
        }
        assert open_ports == ({8080} if pod.component == "daskyard-controller" else set()), pod


@pytest.mark.parametrize("name", ["cluster with everything", "daskjob with everything", "runtime with everything"])
def test_prometheus_reads_metrics_where_it_is_named(name: str) -> None:
    prometheus = End("monitoring", (("app.kubernetes.io/name", "prometheus"),))
    expected = {"scheduler": {DASHBOARD}, "worker": {WORKER_DASHBOARD}, "job-runner": set()}
    for pod in pods(name):
        open_ports = {port for port in PORTS if allows(pod, "Ingress", prometheus, port, everything(name))}
        assert open_ports == expected[pod.component], pod


def test_clients_reach_the_scheduler_where_they_are_named() -> None:
    name = "cluster with everything"
    clients = [
        End("daskyard", (("app.kubernetes.io/name", "notebook"),)),
        End("notebooks", (("app.kubernetes.io/name", "jupyterhub"),)),
    ]
    for pod in pods(name):
        for client in clients:
            open_ports = {port for port in PORTS if allows(pod, "Ingress", client, port, everything(name))}
            assert open_ports == ({SCHEDULER} if pod.component == "scheduler" else set())
