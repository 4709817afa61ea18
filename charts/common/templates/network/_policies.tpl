{{/* Who may talk to whom: one policy a kind of pod, both ways closed but for what is listed. Other clusters of the
     namespace, other namespaces, the Kubernetes API and the metadata address are refused by not being listed. */}}
{{- define "daskyard.networkPolicies" -}}
{{- range $suffix := include "daskyard.network.suffixes" . | fromYamlArray }}
{{- $name := printf "%s-%s" (include "daskyard.name" $) $suffix }}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  {{- include "daskyard.metadata" (dict "root" $ "name" $name) | nindent 2 }}
spec:
  {{- include "daskyard.network.policy" (dict "root" $ "suffix" $suffix) | nindent 2 }}
{{- end }}
{{- end -}}

{{/* What follows the cluster's name in those of its policies; "[]" where there are none. */}}
{{- define "daskyard.network.suffixes" -}}
{{- $suffixes := list -}}
{{- if .Values.networkPolicy.enabled -}}
{{- $suffixes = list "scheduler" "worker" -}}
{{- if hasKey .Values "runner" }}{{ $suffixes = append $suffixes "runner" }}{{ end -}}
{{- end -}}
{{- toYaml $suffixes -}}
{{- end -}}

{{/* The spec of one of them. Arguments: root, suffix. */}}
{{- define "daskyard.network.policy" -}}
podSelector:
  matchLabels:
    dask.org/cluster-name: {{ include "daskyard.name" .root }}
    dask.org/component: {{ ternary (include "daskyard.runner.component" .root) .suffix (eq .suffix "runner") }}
policyTypes: [Ingress, Egress]
{{ include (printf "daskyard.network.%s" .suffix) .root }}
{{- end -}}

{{- define "daskyard.network.scheduler" -}}
{{- $ports := include "daskyard.ports" . | fromYaml -}}
{{- $values := .Values.networkPolicy -}}
{{- $callers := ternary (list "worker" (include "daskyard.runner.component" .)) (list "worker") (hasKey .Values "runner") -}}
ingress:
  - from:
      {{- include "daskyard.network.peers" (dict "root" . "components" $callers) | nindent 6 }}
      {{- range $values.clients }}
      - namespaceSelector:
          matchLabels:
            kubernetes.io/metadata.name: {{ .namespace | default $.Release.Namespace }}
        podSelector:
          matchLabels:
            {{- toYaml .podLabels | nindent 12 }}
      {{- end }}
    ports:
      {{- include "daskyard.network.tcp" (list $ports.scheduler) | nindent 6 }}
  - from:
      - namespaceSelector:
          matchLabels:
            kubernetes.io/metadata.name: {{ $values.operatorNamespace }}
        podSelector:
          matchLabels:
            app.kubernetes.io/name: daskyard-operator
    ports:
      {{- include "daskyard.network.tcp" (list $ports.scheduler $ports.schedulerDashboard) | nindent 6 }}
  - from:
      - namespaceSelector:
          matchLabels:
            kubernetes.io/metadata.name: {{ $values.operatorNamespace }}
        podSelector:
          matchLabels:
            app.kubernetes.io/name: daskyard-controller
    ports:
      {{- include "daskyard.network.tcp" (list $ports.schedulerDashboard) | nindent 6 }}
  {{- with include "daskyard.network.fromMonitoring" (dict "root" . "port" $ports.schedulerDashboard) }}
  {{- . | nindent 2 }}
  {{- end }}
egress:
  - to:
      {{- include "daskyard.network.peers" (dict "root" . "components" (list "worker")) | nindent 6 }}
    ports:
      {{- include "daskyard.network.tcp" (list $ports.worker $ports.nanny) | nindent 6 }}
  {{- include "daskyard.network.dnsRule" . | nindent 2 }}
{{- end -}}

{{- define "daskyard.network.worker" -}}
{{- $ports := include "daskyard.ports" . | fromYaml -}}
{{- $workers := include "daskyard.network.peers" (dict "root" . "components" (list "worker")) -}}
ingress:
  - from:
      {{- include "daskyard.network.peers" (dict "root" . "components" (list "scheduler")) | nindent 6 }}
    ports:
      {{- include "daskyard.network.tcp" (list $ports.worker $ports.nanny) | nindent 6 }}
  - from:
      {{- $workers | nindent 6 }}
    ports:
      {{- include "daskyard.network.tcp" (list $ports.worker) | nindent 6 }}
      {{- include "daskyard.network.trainingPorts" . | nindent 6 }}
  {{- with include "daskyard.network.fromMonitoring" (dict "root" . "port" $ports.workerDashboard) }}
  {{- . | nindent 2 }}
  {{- end }}
egress:
  {{- include "daskyard.network.toScheduler" . | nindent 2 }}
  - to:
      {{- $workers | nindent 6 }}
    ports:
      {{- include "daskyard.network.tcp" (list $ports.worker) | nindent 6 }}
      {{- include "daskyard.network.trainingPorts" . | nindent 6 }}
  {{- include "daskyard.network.dnsRule" . | nindent 2 }}
  {{- with include "daskyard.network.storageRules" . | trim }}
  {{- . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- define "daskyard.network.runner" -}}
ingress: []
egress:
  {{- include "daskyard.network.toScheduler" . | nindent 2 }}
  {{- include "daskyard.network.dnsRule" . | nindent 2 }}
  {{- with include "daskyard.network.storageRules" . | trim }}
  {{- . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* By what a runner is known. The operator takes every job-runner for a DaskJob's, and deletes the cluster that it names
     when it ends: an MLJob's bears another name. */}}
{{- define "daskyard.runner.component" -}}
{{- .Values.runnerComponent | default "job-runner" -}}
{{- end -}}
