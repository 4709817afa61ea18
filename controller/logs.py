"""What an attempt's pods have logged and what happened to them, collected before the pods go."""

from __future__ import annotations

from controller.api import Api, ApiError, Object
from controller.objects import ATTEMPT_LABEL, ROLE_LABEL, Of
from controller.observe import Found
from controller.ownership import EVENTS_SUFFIX

# A ConfigMap takes 1 MiB; some of that is for names and the events.
MAX_BYTES = 900 << 10
N_LINES = 5000
MAX_CONTAINERS = 60
EVENTS_BYTES = 64 << 10


def collected(api: Api, found: Found, whose: Of) -> dict[str, str]:
    """Return texts by file name: a log for each container, and the Events of job and pods.

    A log that cannot be had is no error: its file says why. Of long ones, the end is kept.
    """
    number = str(whose.attempt)
    attempt = f"attempt-{number}"
    roles = ("runner", "scheduler", "worker")
    pods = [pod for pod in found.pods if _label(pod, ROLE_LABEL) in roles and _label(pod, ATTEMPT_LABEL) == number]
    # The runner's and the scheduler's first: of many workers, the last are left out.
    pods.sort(key=lambda pod: (_label(pod, ROLE_LABEL) == "worker", pod["metadata"]["name"]))
    containers = [(pod, name) for pod in pods for name in _containers(pod)][:MAX_CONTAINERS]
    share = (MAX_BYTES - EVENTS_BYTES) // max(len(containers), 1)
    files = {
        f"{attempt}.{pod['metadata']['name']}.{name}.log": _end(_log(api, pod, name), share) for pod, name in containers
    }
    files[f"{attempt}{EVENTS_SUFFIX}"] = _end(_events(api, found, whose), EVENTS_BYTES)
    return files


def _label(found: Object, name: str) -> str:
    return str(found["metadata"].get("labels", {}).get(name, ""))


def _containers(pod: Object) -> list[str]:
    status = pod.get("status", {})
    return [
        str(item["name"])
        for item in (*status.get("initContainerStatuses", []), *status.get("containerStatuses", []))
        if "waiting" not in item.get("state", {}) or item.get("restartCount", 0)
    ]


def _log(api: Api, pod: Object, container: str) -> str:
    metadata = pod["metadata"]
    try:
        return api.log(metadata["namespace"], metadata["name"], container, N_LINES).decode(errors="replace")
    except ApiError as error:
        return f"(no log: {error})\n"


def _events(api: Api, found: Found, whose: Of) -> str:
    try:
        events, _ = api.list("Event", whose.namespace)
    except ApiError as error:
        return f"(no events: {error})\n"
    names = {whose.name, whose.cluster}
    lines = []
    for event in events:
        name = event["involvedObject"].get("name", "")
        if name in names or name.startswith(f"{whose.cluster}-"):
            at = event.get("lastTimestamp") or event.get("eventTime") or event["metadata"]["creationTimestamp"]
            what = f"{event['involvedObject'].get('kind')} {name}"
            lines.append(f"{at} {event.get('type')} {what} {event.get('reason')}: {event.get('message', '').strip()}")
    return "".join(f"{line}\n" for line in sorted(lines))


def _end(text: str, n_bytes: int) -> str:
    data = text.encode()
    if len(data) <= n_bytes:
        return text
    return "(the beginning is left out)\n" + data[-n_bytes + 64 :].decode(errors="ignore")
