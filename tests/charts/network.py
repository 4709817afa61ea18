"""Reads network policies as a network plugin does: what a pod may send, and what it may receive.

Addresses are IPv4. A pod that no policy selects for a direction may do anything in it; policies add up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

from pods import Pod
from render import Object

Rules = list[dict[str, Any]]
_PEERS = {"Ingress": "from", "Egress": "to"}


@dataclass(frozen=True)
class End:
    """The other end of a connection: a pod by namespace and labels, or an address outside of the cluster."""

    namespace: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    address: str = ""


def end(pod: Pod) -> End:
    return End(pod.namespace, tuple(pod.labels.items()))


def policies_of(pod: Pod, direction: str, objects: Iterable[Object]) -> list[Object]:
    """Return the policies that select a pod for a direction, "Ingress" or "Egress"."""
    return [
        policy
        for policy in objects
        if policy["kind"] == "NetworkPolicy"
        and policy["metadata"]["namespace"] == pod.namespace
        and direction in policy["spec"]["policyTypes"]
        and _selects(policy["spec"]["podSelector"], dict(pod.labels))
    ]


def rules_of(pod: Pod, direction: str, objects: Iterable[Object]) -> Iterator[dict[str, Any]]:
    """Return the rules that hold for a pod in a direction."""
    for policy in policies_of(pod, direction, objects):
        yield from policy["spec"].get(direction.lower(), [])


def allows(pod: Pod, direction: str, other: End, port: int, objects: Iterable[Object], protocol: str = "TCP") -> bool:
    """Whether a pod may connect to, or be connected to by, the other end."""
    objects = list(objects)
    if not policies_of(pod, direction, objects):
        return True
    return any(
        _matches_port(rule, port, protocol) and _matches_peer(rule.get(_PEERS[direction], []), other, pod.namespace)
        for rule in rules_of(pod, direction, objects)
    )


def connects(one: Pod, other: Pod, port: int, objects: Iterable[Object], protocol: str = "TCP") -> bool:
    """Whether one pod may connect to another: both must be allowed to."""
    objects = list(objects)
    return allows(one, "Egress", end(other), port, objects, protocol) and allows(
        other, "Ingress", end(one), port, objects, protocol
    )


def _matches_port(rule: dict[str, Any], port: int, protocol: str) -> bool:
    ports = rule.get("ports")
    return not ports or any(
        entry.get("protocol", "TCP") == protocol
        and ("port" not in entry or entry["port"] <= port <= entry.get("endPort", entry["port"]))
        for entry in ports
    )


def _matches_peer(peers: Rules, other: End, own_namespace: str) -> bool:
    return not peers or any(_is_peer(peer, other, own_namespace) for peer in peers)


def _is_peer(peer: dict[str, Any], other: End, own_namespace: str) -> bool:
    block = peer.get("ipBlock")
    if block:
        address = other.address and ip_address(other.address)
        return bool(address) and holds(block, address)
    if other.address:
        return False
    if "namespaceSelector" in peer:
        # Kubernetes gives each namespace this label.
        if not _selects(peer["namespaceSelector"], {"kubernetes.io/metadata.name": other.namespace}):
            return False
    elif other.namespace != own_namespace:
        return False
    return _selects(peer.get("podSelector", {}), dict(other.labels))


def holds(block: dict[str, Any], address: Any) -> bool:
    """Whether an ipBlock holds an address."""
    return address in ip_network(block["cidr"]) and not any(
        address in ip_network(part) for part in block.get("except", [])
    )


def _selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    for wish in selector.get("matchExpressions", []):
        has, value = wish["key"] in labels, labels.get(wish["key"])
        ways = {"In": has and value in wish.get("values", []), "NotIn": value not in wish.get("values", [])}
        ways |= {"Exists": has, "DoesNotExist": not has}
        if not ways[wish["operator"]]:
            return False
    return selector.get("matchLabels", {}).items() <= labels.items()
