{{/* Pods of this cluster, as peers of a rule. Arguments: root, components. */}}
{{- define "daskyard.network.peers" -}}
{{- $peers := list -}}
{{- range .components -}}
{{- $labels := dict "dask.org/cluster-name" (include "daskyard.name" $.root) "dask.org/component" . -}}
{{- $peers = append $peers (dict "podSelector" (dict "matchLabels" $labels)) -}}
{{- end -}}
{{- toYaml $peers -}}
{{- end -}}

{{/* TCP ports of a rule. Argument: a list of numbers; policies speak of pods' ports, and egress rules of no names. */}}
{{- define "daskyard.network.tcp" -}}
{{- $ports := list -}}
{{- range . -}}
{{- $ports = append $ports (dict "protocol" "TCP" "port" (int .)) -}}
{{- end -}}
{{- toYaml $ports -}}
{{- end -}}

{{- define "daskyard.network.trainingPorts" -}}
{{- $ports := include "daskyard.ports" . | fromYaml -}}
- protocol: TCP
  port: {{ $ports.trainingFirst }}
  endPort: {{ $ports.trainingLast }}
{{- end -}}

{{/* The name service, which every pod asks for its peers. */}}
{{- define "daskyard.network.dnsRule" -}}
- to:
    - namespaceSelector:
        matchLabels:
          kubernetes.io/metadata.name: kube-system
      podSelector:
        matchLabels:
          k8s-app: kube-dns
  ports:
    - protocol: UDP
      port: 53
    - protocol: TCP
      port: 53
{{- end -}}

{{/* Egress to the scheduler, of workers and runner. */}}
{{- define "daskyard.network.toScheduler" -}}
{{- $ports := include "daskyard.ports" . | fromYaml -}}
- to:
    {{- include "daskyard.network.peers" (dict "root" . "components" (list "scheduler")) | nindent 4 }}
  ports:
    {{- include "daskyard.network.tcp" (list $ports.scheduler) | nindent 4 }}
{{- end -}}

{{/* Ingress from Prometheus. Arguments: root, port. */}}
{{- define "daskyard.network.fromMonitoring" -}}
{{- with .root.Values.networkPolicy.monitoringNamespace -}}
- from:
    - namespaceSelector:
        matchLabels:
          kubernetes.io/metadata.name: {{ . }}
  ports:
    {{- include "daskyard.network.tcp" (list $.port) | nindent 4 }}
{{- end }}
{{- end -}}
