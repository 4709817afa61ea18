"""Values that no chart may accept, by the kind of mistake; test_bad_values_are_refused.py renders them."""

from __future__ import annotations

from dataclasses import dataclass

JOB = "pipeline: kmeans\ninput: s3://demo/data/bio\noutput: s3://demo/runs\n"
GOOD = {"daskjob": {"job": JOB}, "cluster": {}, "runtime": {}, "platform": {}}


@dataclass(frozen=True)
class Bad:
    """Values on top of good ones; the key that the message names; the rest of the message, as a regular expression."""

    chart: str
    values: str  # YAML
    key: str
    remedy: str
    release: str = "demo"

    def __str__(self) -> str:
        return f"{self.chart}: {self.values.strip() or self.release}"


def unknown(chart: str, values: str, key: str) -> Bad:
    """A typo: the schema names place and key."""
    place, _, last = key.rpartition(".")
    return Bad(chart, values, place, f"additional propert.*'{last}'.* not allowed")


def wrong_type(chart: str, values: str, key: str, wanted: str) -> Bad:
    return Bad(chart, values, key, f"got .*, want {wanted}")


def no_match(chart: str, values: str, key: str) -> Bad:
    """A string that the schema's pattern, which the message shows, does not match."""
    return Bad(chart, values, key, "does not match pattern '")


def too_small(chart: str, values: str, key: str, least: object) -> Bad:
    return Bad(chart, values, key, f"minimum: got .*, want {least}")


def too_large(chart: str, values: str, key: str, most: object) -> Bad:
    return Bad(chart, values, key, f"maximum: got .*, want {most}")


def none_of(chart: str, values: str, key: str, first: str) -> Bad:
    return Bad(chart, values, key, f"value must be one of '{first}'")


def group(text: str) -> str:
    """Values of the default group."""
    return f"workerGroups: {{default: {{{text}}}}}"


LONG = "a23456789-123456789-123456789-123456789-123456789-1234"  # 54 characters
OF_CLUSTERS_AND_JOBS = [
    unknown("cluster", "replicas: 3", "replicas"),
    unknown("daskjob", "Retries: 3", "Retries"),
    unknown("cluster", "image: {repo: jobs}", "image.repo"),
    unknown("cluster", "gpuImage: {pullPolicy: Always}", "gpuImage.pullPolicy"),
    unknown("cluster", "storage: {endPoint: http://minio:9000}", "storage.endPoint"),
    unknown("cluster", "storage: {accessKey: AKIA, secretKey: hunter2}", "storage.accessKey"),
    unknown("cluster", "scheduler: {replicas: 2}", "scheduler.replicas"),
    unknown("cluster", "scheduler: {resources: {limits: {cpu: 1}}}", "scheduler.resources.limits"),
    unknown("cluster", group("worker: 3"), "workerGroups.default.worker"),
    unknown("cluster", group("resources: {storage: 1Gi}"), "workerGroups.default.resources.storage"),
    unknown("cluster", "workerGroups: {gpu: {replicas: 1, gpu: 1}}", "workerGroups.gpu.gpu"),
    unknown("cluster", "autoscaling: {min: 1}", "autoscaling.min"),
    unknown("cluster", "networkPolicy: {egress: []}", "networkPolicy.egress"),
    unknown("cluster", group("tolerations: [{taint: gpu}]"), "workerGroups.default.tolerations.0.taint"),
    unknown("daskjob", "runner: {threads: 2}", "runner.threads"),
    unknown("daskjob", "runner: {resources: {mem: 1Gi}}", "runner.resources.mem"),
    unknown("daskjob", "networkPolicy: {clients: []}", "networkPolicy.clients"),  # a job's scheduler is its own
    wrong_type("cluster", group("replicas: two"), "workerGroups.default.replicas", "integer"),
    wrong_type("cluster", group("threads: 1.5"), "workerGroups.default.threads", "integer"),
    wrong_type("cluster", group("resources: {cpu: 2}"), "workerGroups.default.resources.cpu", "string"),
    wrong_type("cluster", group("env: {OMP_NUM_THREADS: 1}"), "workerGroups.default.env.OMP_NUM_THREADS", "string"),
    wrong_type("cluster", group("env: [{name: A, value: b}]"), "workerGroups.default.env", "object"),
    wrong_type("cluster", group("nodeSelector: [gpu]"), "workerGroups.default.nodeSelector", "object"),
    wrong_type("cluster", "autoscaling: {enabled: 'yes please'}", "autoscaling.enabled", "boolean"),
    wrong_type("cluster", "autoscaling: true", "autoscaling", "object"),
    wrong_type(
        "cluster", "networkPolicy: {storage: {cidrs: [0.0.0.0/0], port: 443}}", "networkPolicy.storage", "array"
    ),
    wrong_type("cluster", "image: localhost:5001/daskyard/jobs:0.1.0", "image", "object"),
    wrong_type("cluster", "image: {pullSecrets: registry}", "image.pullSecrets", "array"),
    wrong_type("cluster", "podLabels: {example.org/year: 2026}", "podLabels.example.org/year", "string"),
    wrong_type("daskjob", "retries: often", "retries", "integer"),
    wrong_type("daskjob", "job: {pipeline: kmeans}", "job", "string"),
    too_small("cluster", group("replicas: -5"), "workerGroups.default.replicas", 0),
    too_large("cluster", group("replicas: 100000"), "workerGroups.default.replicas", "1,?000"),
    too_small("cluster", group("threads: 0"), "workerGroups.default.threads", 1),
    too_small("cluster", group("gpus: -1"), "workerGroups.default.gpus", 0),
    too_large("cluster", group("gpus: 64"), "workerGroups.default.gpus", 16),
    Bad("cluster", group("daskResources: {LICENCE: 0}"), "workerGroups.default.daskResources.LICENCE", "want 0"),
    too_small("cluster", "autoscaling: {minimum: -1}", "autoscaling.minimum", 0),
    too_small("cluster", "autoscaling: {maximum: 0}", "autoscaling.maximum", 1),
    too_small("daskjob", "retries: -1", "retries", 0),
    too_large("daskjob", "retries: 1000", "retries", 100),
    too_small("daskjob", "deadlineSeconds: -60", "deadlineSeconds", 0),
    too_small(
        "cluster", "networkPolicy: {storage: [{cidrs: [10.0.0.0/8], port: 0}]}", "networkPolicy.storage.0.port", 1
    ),
    too_large(
        "cluster",
        "networkPolicy: {storage: [{cidrs: [10.0.0.0/8], port: 70000}]}",
        "networkPolicy.storage.0.port",
        "65,?535",
    ),
    no_match("cluster", group("resources: {memory: 2GB}"), "workerGroups.default.resources.memory"),
    no_match("cluster", group("resources: {memory: '-1'}"), "workerGroups.default.resources.memory"),
    no_match("cluster", group("resources: {memory: 1 Gi}"), "workerGroups.default.resources.memory"),
    no_match("cluster", group("resources: {memory: 1.5Gi}"), "workerGroups.default.resources.memory"),
    no_match("cluster", group("resources: {memory: '2147483648'}"), "workerGroups.default.resources.memory"),
    no_match("cluster", group("resources: {memory: ''}"), "workerGroups.default.resources.memory"),
    no_match("cluster", group("resources: {ephemeralStorage: 10G}"), "workerGroups.default.resources.ephemeralStorage"),
    no_match("cluster", group("resources: {cpu: two}"), "workerGroups.default.resources.cpu"),
    no_match("cluster", group("resources: {cpu: '0'}"), "workerGroups.default.resources.cpu"),
    no_match("cluster", "scheduler: {resources: {cpu: 500 m}}", "scheduler.resources.cpu"),
    no_match("daskjob", "runner: {resources: {memory: 1gb}}", "runner.resources.memory"),
    no_match("cluster", "storage: {endpoint: minio:9000}", "storage.endpoint"),
    no_match("cluster", "storage: {endpoint: s3://bucket}", "storage.endpoint"),
    no_match("cluster", "storage: {endpoint: 'http://minio:9000/bucket'}", "storage.endpoint"),
    no_match("cluster", "storage: {endpoint: 'https://AKIA:hunter2@s3.example.org'}", "storage.endpoint"),
    no_match("cluster", "storage: {credentialsSecret: Daskyard_S3}", "storage.credentialsSecret"),
    no_match(
        "cluster", "storage: {credentialsSecret: '[default] aws_access_key_id = AKIA'}", "storage.credentialsSecret"
    ),
    no_match("cluster", "storage: {region: ''}", "storage.region"),
    no_match("cluster", "image: {tag: '0.1.0 '}", "image.tag"),
    no_match("cluster", "image: {digest: 0123456789abcdef}", "image.digest"),
    no_match("cluster", "image: {repository: Registry.Example.Org/Jobs}", "image.repository"),
    no_match("cluster", "image: {repository: ''}", "image.repository"),
    no_match("cluster", "image: {pullSecrets: [My_Registry]}", "image.pullSecrets.0"),
    no_match("cluster", "scheduler: {priorityClassName: Very High}", "scheduler.priorityClassName"),
    no_match("cluster", "networkPolicy: {operatorNamespace: ''}", "networkPolicy.operatorNamespace"),
    no_match("cluster", "networkPolicy: {monitoringNamespace: Monitoring}", "networkPolicy.monitoringNamespace"),
    no_match(
        "cluster", "networkPolicy: {storage: [{cidrs: [10.0.0.0/33], port: 1}]}", "networkPolicy.storage.0.cidrs.0"
    ),
    no_match("cluster", "networkPolicy: {storage: [{cidrs: [minio], port: 1}]}", "networkPolicy.storage.0.cidrs.0"),
    no_match("cluster", "podLabels: {example.org/team: computer vision}", "podLabels.example.org/team"),
    no_match("cluster", group("nodeSelector: {disk: 'very fast'}"), "workerGroups.default.nodeSelector.disk"),
    no_match("daskjob", "runId: My Run", "runId"),
    none_of("cluster", "image: {pullPolicy: always}", "image.pullPolicy", "Always"),
    none_of(
        "cluster",
        group("tolerations: [{key: gpu, operator: Is}]"),
        "workerGroups.default.tolerations.0.operator",
        "Equal",
    ),
    none_of(
        "cluster", group("tolerations: [{effect: Evict}]"), "workerGroups.default.tolerations.0.effect", "NoSchedule"
    ),
    unknown("cluster", group("env: {MY-NAME: x}"), "workerGroups.default.env.MY-NAME"),
    unknown("cluster", group("daskResources: {a b: 1}"), "workerGroups.default.daskResources.a b"),
    unknown("cluster", "podLabels: {my team: vision}", "podLabels.my team"),
    unknown("daskjob", "podAnnotations: {-x: y}", "podAnnotations.-x"),
    Bad("cluster", "workerGroups: {default: null}", "workerGroups", "missing property 'default'"),
    Bad("cluster", "workerGroups: {gpu: {gpus: 1}}", "workerGroups.gpu", "missing property 'replicas'"),
    Bad(
        "cluster",
        "networkPolicy: {storage: [{namespace: minio, port: 1}]}",
        "networkPolicy.storage.0",
        "missing property 'podLabels'",
    ),
    Bad(
        "cluster",
        "networkPolicy: {storage: [{cidrs: [], port: 1}]}",
        "networkPolicy.storage.0.cidrs",
        "minItems: got 0, want 1",
    ),
    Bad(
        "cluster",
        "networkPolicy: {extraEgress: [{}]}",
        "networkPolicy.extraEgress.0",
        "missing properties 'to', 'ports'",
    ),
    Bad(
        "cluster",
        "networkPolicy: {extraEgress: [{to: [], ports: [{port: 1}]}]}",
        "networkPolicy.extraEgress.0.to",
        "minItems",
    ),
    Bad(
        "cluster",
        "networkPolicy: {clients: [{namespace: notebooks}]}",
        "networkPolicy.clients.0",
        "missing property 'podLabels'",
    ),
    # What a schema cannot tell: the templates do, with the remedy in so many words.
    Bad("cluster", "autoscaling: {enabled: true, minimum: 5, maximum: 2}", "autoscaling.minimum", "swap or align"),
    Bad("cluster", "autoscaling: {enabled: true, minimum: 3}", "workerGroups.default.replicas", "start within"),
    Bad("cluster", "scheduler: {resources: {cpuRequest: '2'}}", "scheduler.resources.cpuRequest", "raise cpu or lower"),
    Bad("daskjob", "runner: {resources: {cpuRequest: 1001m}}", "runner.resources.cpuRequest", "raise cpu or lower"),
    Bad("cluster", group("resources: {memory: 64Mi}"), "workerGroups.default.resources.memory", "take 256Mi or more"),
    Bad("daskjob", "runner: {resources: {ephemeralStorage: 10Mi}}", "runner.resources.ephemeralStorage", "take 256Mi"),
    Bad("cluster", "workerGroups: {scheduler: {replicas: 1}}", "workerGroups.scheduler", "take another name"),
    Bad("cluster", "workerGroups: {GPU: {replicas: 1}}", "workerGroups.GPU", "take lowercase letters"),
    Bad("cluster", f"workerGroups: {{{LONG}-1234: {{replicas: 1}}}}", f"workerGroups.{LONG}-1234", "shorten"),
    Bad("cluster", group("daskResources: {GPU: 1}"), "workerGroups.default.daskResources", "set .*gpus instead"),
    Bad(
        "cluster",
        group("env: {AWS_SECRET_ACCESS_KEY: x}"),
        "workerGroups.default.env.AWS_SECRET_ACCESS_KEY",
        "put them in a Secret",
    ),
    Bad("daskjob", "runner: {env: {AWS_ACCESS_KEY_ID: AKIA}}", "runner.env.AWS_ACCESS_KEY_ID", "put them in a Secret"),
    Bad("cluster", group("env: {DASK_WORKER_NAME: me}"), "workerGroups.default.env.DASK_WORKER_NAME", "take it out"),
    Bad("cluster", "storage: {credentialsSecret: daskyard-s3}", "networkPolicy.storage", "list where storage is"),
    Bad("cluster", "storage: {endpoint: http://minio:9000}", "networkPolicy.storage", "list where storage is"),
    Bad(
        "cluster",
        "networkPolicy: {storage: [{cidrs: [169.254.169.254/32], port: 80}]}",
        "networkPolicy.storage",
        "take it out",
    ),
    Bad(
        "cluster",
        "networkPolicy: {extraEgress: [{to: [{ipBlock: {cidr: 0.0.0.0/0}}], ports: [{port: 443}]}]}",
        "networkPolicy.extraEgress",
        r"add except: \[169.254.0.0/16\]",
    ),
    Bad(
        "daskjob",
        "networkPolicy: {extraEgress: [{to: [{ipBlock: {cidr: 169.254.169.0/24}}], ports: [{port: 80}]}]}",
        "networkPolicy.extraEgress",
        "take it out",
    ),
    no_match(
        "cluster",
        "networkPolicy: {extraEgress: [{to: [{ipBlock: {cidr: '::/0'}}], ports: [{port: 443}]}]}",
        "networkPolicy.extraEgress.0.to.0.ipBlock.cidr",
    ),
    Bad(
        "cluster",
        "networkPolicy: {extraEgress: [{to: [{}], ports: [{port: 443}]}]}",
        "networkPolicy.extraEgress.0.to.0",
        "minProperties: got 0, want 1",
    ),
    wrong_type(
        "cluster",
        "networkPolicy: {extraEgress: [{to: [{podSelector: {}}], ports: [{port: https}]}]}",
        "networkPolicy.extraEgress.0.ports.0.port",
        "integer",
    ),
    Bad("cluster", "podLabels: {dask.org/component: worker}", "podLabels", "take it out"),
    Bad("cluster", f"nameOverride: {LONG}", "nameOverride", "take at most 53"),
    Bad("cluster", "nameOverride: My.Cluster", "nameOverride", "take lowercase letters"),
    Bad("cluster", "", "release name", "take lowercase letters", release="demo.v2"),
    # The job file.
    Bad("daskjob", "job: ''", "job", "--set-file job=FILE"),
    Bad("daskjob", "job: '[1, 2'", "job", "is no YAML map"),
    Bad("daskjob", "job: just words", "job", "is no YAML map"),
    Bad("daskjob", "job: '[kmeans]'", "job", "is no YAML map"),
    Bad("daskjob", "job: 'input: s3://a/b'", "job", "has no key 'pipeline'.*--set-file job=FILE"),
    Bad("daskjob", "job: 'pipeline: kmeans'", "job", "has no key 'input'"),
    Bad("daskjob", "job: '{pipeline: kmeans, input: s3://a/b}'", "job", "has no key 'output'"),
]


OF_RUNTIMES = [
    unknown("runtime", "workerGroups: {}", "workerGroups"),
    unknown("runtime", "job: 'pipeline: kmeans'", "job"),
    unknown("runtime", "autoscaling: {enabled: true}", "autoscaling"),
    unknown("runtime", "hardware: {cpu: {replicas: 2}}", "hardware.cpu.replicas"),
    unknown("runtime", "hardware: {GPU: {gpus: 1}}", "hardware.GPU"),
    unknown("runtime", "hardware: {a23456789-123456789-1: {}}", "hardware.a23456789-123456789-1"),
    unknown("runtime", "runner: {retries: 3}", "runner.retries"),
    wrong_type("runtime", "hardware: [cpu, gpu]", "hardware", "object"),
    wrong_type("runtime", "maxWorkers: many", "maxWorkers", "integer"),
    too_small("runtime", "maxWorkers: 0", "maxWorkers", 1),
    too_large("runtime", "maxWorkers: 5000", "maxWorkers", "1,?000"),
    too_large("runtime", "hardware: {gpu: {gpus: 64}}", "hardware.gpu.gpus", 16),
    no_match("runtime", "hardware: {cpu: {resources: {memory: 2GB}}}", "hardware.cpu.resources.memory"),
    no_match("runtime", "scheduler: {resources: {cpu: 500 m}}", "scheduler.resources.cpu"),
    Bad("runtime", "hardware: {cpu: null}", "hardware", "missing property 'cpu'"),
    Bad(
        "runtime",
        "hardware: {a: {}, b: {}, c: {}, d: {}, e: {}, f: {}, g: {}, h: {}}",
        "hardware",
        "maxProperties: got 9, want 8",
    ),
    Bad("runtime", "hardware: {default: {}}", "hardware.default", "take another name"),
    Bad("runtime", "hardware: {gpu: {daskResources: {GPU: 1}}}", "hardware.gpu.daskResources", "set .*gpus instead"),
    Bad("runtime", "hardware: {cpu: {resources: {cpuRequest: '2'}}}", "hardware.cpu.resources.cpuRequest", "raise cpu"),
    Bad("runtime", "hardware: {cpu: {env: {MEMORY_LIMIT: 1Gi}}}", "hardware.cpu.env.MEMORY_LIMIT", "take it out"),
    Bad(
        "runtime",
        "runner: {env: {DASK_DASKYARD__START_TIMEOUT: '9'}}",
        "runner.env.DASK_DASKYARD__START_TIMEOUT",
        "take",
    ),
    Bad("runtime", "runner: {env: {DASK_SCHEDULER_ADDRESS: here}}", "runner.env.DASK_SCHEDULER_ADDRESS", "take it out"),
    Bad("runtime", "storage: {credentialsSecret: daskyard-s3}", "networkPolicy.storage", "list where storage is"),
    Bad("runtime", "podLabels: {dask.org/component: worker}", "podLabels", "take it out"),
    Bad("runtime", "nameOverride: a23456789-123456789-1", "nameOverride", "take at most 20"),
    Bad("runtime", "nameOverride: My_Runtime", "nameOverride", "take lowercase letters"),
    Bad("runtime", "", "release name", "take lowercase letters", release="demo.v2"),
]


def team(text: str) -> str:
    """Values of a team's namespace."""
    return f"namespaces: {{vision: {{{text}}}}}"


OF_THE_PLATFORM = [
    unknown("platform", "replicaCount: 2", "replicaCount"),
    unknown("platform", "operator: {replicas: 2}", "operator.replicas"),
    unknown("platform", "operator: {resources: {limits: {}}}", "operator.resources.limits"),
    unknown("platform", "controller: {watchNamespaces: [vision]}", "controller.watchNamespaces"),
    unknown("platform", "rbac: {create: false}", "rbac"),
    unknown("platform", "monitoring: {enable: true}", "monitoring.enable"),
    unknown("platform", team("quotas: {}"), "namespaces.vision.quotas"),
    unknown("platform", team("quota: {pods: '5'}"), "namespaces.vision.quota.pods"),
    unknown("platform", team("limitRange: {requests: {}}"), "namespaces.vision.limitRange.requests"),
    unknown("platform", team("members: [{kind: User, name: ada, role: admin}]"), "namespaces.vision.members.0.role"),
    unknown("platform", "networkPolicy: {storage: []}", "networkPolicy.storage"),
    wrong_type("platform", "namespaces: [vision]", "namespaces", "object"),
    wrong_type("platform", "operator: {watchNamespaces: vision}", "operator.watchNamespaces", "array"),
    wrong_type(
        "platform", "operator: {workerAllocation: {batchSize: '10'}}", "operator.workerAllocation.batchSize", "integer"
    ),
    wrong_type("platform", "controller: {enabled: 'no'}", "controller.enabled", "boolean"),
    too_small("platform", "controller: {replicas: 0}", "controller.replicas", 1),
    wrong_type("platform", "crds: {install: 'no'}", "crds.install", "boolean"),
    wrong_type("platform", team("quota: {hard: {pods: 5}}"), "namespaces.vision.quota.hard.pods", "string"),
    wrong_type("platform", team("create: 'no'"), "namespaces.vision.create", "boolean"),
    too_small("platform", "operator: {workerAllocation: {batchSize: -1}}", "operator.workerAllocation.batchSize", 0),
    too_large(
        "platform", "operator: {workerAllocation: {delaySeconds: 86400}}", "operator.workerAllocation.delaySeconds", 600
    ),
    no_match("platform", "operator: {resources: {memory: 512MB}}", "operator.resources.memory"),
    no_match("platform", "operator: {watchNamespaces: [Team_A]}", "operator.watchNamespaces.0"),
    no_match("platform", "operator: {priorityClassName: Very High}", "operator.priorityClassName"),
    no_match("platform", "image: {tag: 'latest one'}", "image.tag"),
    no_match("platform", "networkPolicy: {apiServerCidrs: [kubernetes.default]}", "networkPolicy.apiServerCidrs.0"),
    no_match(
        "platform", team("quota: {hard: {requests.memory: 256 GB}}"), "namespaces.vision.quota.hard.requests.memory"
    ),
    no_match(
        "platform",
        team("limitRange: {default: {cpu: -1}}").replace("-1", "'-1'"),
        "namespaces.vision.limitRange.default.cpu",
    ),
    no_match(
        "platform", team("labels: {example.org/name: Computer Vision}"), "namespaces.vision.labels.example.org/name"
    ),
    no_match("platform", "operator: {nodeSelector: {disk: 'very fast'}}", "operator.nodeSelector.disk"),
    no_match("platform", "monitoring: {interval: soon}", "monitoring.interval"),
    none_of("platform", "image: {pullPolicy: Sometimes}", "image.pullPolicy", "Always"),
    none_of("platform", "operator: {logFormat: xml}", "operator.logFormat", "json"),
    none_of("platform", "controller: {logFormat: full}", "controller.logFormat", "json"),
    no_match("platform", "networkPolicy: {monitoringNamespace: Monitoring}", "networkPolicy.monitoringNamespace"),
    Bad("platform", "controller: {resources: {memory: 64Mi}}", "controller.resources.memory", "take 256Mi or more"),
    none_of("platform", team("members: [{kind: Robot, name: r2}]"), "namespaces.vision.members.0.kind", "User"),
    Bad("platform", team("members: [{kind: User}]"), "namespaces.vision.members.0", "missing property 'name'"),
    Bad("platform", "networkPolicy: {apiServerCidrs: []}", "networkPolicy.apiServerCidrs", "minItems: got 0, want 1"),
    Bad("platform", "operator: {watchNamespaces: [a, a]}", "operator.watchNamespaces", "items at 0 and 1 are equal"),
    Bad("platform", "namespaces: {Team_A: {}}", "namespaces", "'Team_A'"),
    Bad("platform", "monitoring: {enabled: true}", "monitoring.enabled", "install the Prometheus operator first"),
    Bad("platform", "namespaces: {team: {}}", "namespaces.team", "give teams others"),
    Bad(
        "platform", "{operator: {watchNamespaces: [text]}, namespaces: {vision: {}}}", "namespaces.vision", "add it to"
    ),
    Bad(
        "platform",
        "operator: {workerAllocation: {delaySeconds: 5}}",
        "operator.workerAllocation.delaySeconds",
        "set batchSize",
    ),
    Bad("platform", "operator: {resources: {cpuRequest: '4'}}", "operator.resources.cpuRequest", "raise cpu or lower"),
    Bad("platform", "operator: {resources: {memory: 64Mi}}", "operator.resources.memory", "take 256Mi or more"),
    Bad(
        "platform",
        "networkPolicy: {apiServerCidrs: [169.254.0.0/17]}",
        "networkPolicy.apiServerCidrs",
        "(take|drop) it",
    ),
    Bad(
        "platform",
        team("labels: {pod-security.kubernetes.io/enforce: privileged}"),
        "namespaces.vision.labels",
        "take it out",
    ),
]
BAD = [*OF_CLUSTERS_AND_JOBS, *OF_RUNTIMES, *OF_THE_PLATFORM]
