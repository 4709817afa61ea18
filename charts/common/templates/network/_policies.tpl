{{/* Who may talk to whom: one policy a kind of pod, both ways closed but for what is listed. Other clusters of the
     namespace, other namespaces, the Kubernetes API and the metadata address are refused by not being listed. */}}
{{- define "daskyard.networkPolicies" -}}
{{- if .Values.networkPolicy.enabled }}
{{- $components := list "scheduler" "worker" }}
{{- if hasKey .Values "runner" }}{{ $components = append $components "job-runner" }}{{ end }}
{{- range $component := $components }}
{{- $short := trimPrefix "job-" $component }}
{{- $name := printf "%s-%s" (include "daskyard.name" $) $short }}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  {{- include "daskyard.metadata" (dict "root" $ "name" $name) | nindent 2 }}
spec:
  podSelector:
    matchLabels:
      dask.org/cluster-name: {{ include "daskyard.name" $ }}
      dask.org/component: {{ $component }}
  policyTypes: [Ingress, Egress]
  {{- include (printf "daskyard.network.%s" $short) $ | nindent 2 }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "daskyard.network.scheduler" -}}
{{- $ports := include "daskyard.ports" . | fromYaml -}}
{{- $values := .Values.networkPolicy -}}
{{- $callers := ternary (list "worker" "job-runner") (list "worker") (hasKey .Values "runner") -}}
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
