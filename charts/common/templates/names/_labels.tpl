{{/* Labels of every object that a chart makes. The operator copies those of a DaskCluster, DaskJob or DaskWorkerGroup
     to the Deployments, Services and pods that it makes from them. */}}
{{- define "daskyard.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/name: {{ printf "daskyard-%s" .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: daskyard
{{- end -}}

{{/* Name, namespace and labels of an object. Arguments: root, name. */}}
{{- define "daskyard.metadata" -}}
name: {{ .name }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "daskyard.labels" .root | nindent 2 }}
{{- end -}}

{{/* What a pod bears on top of the labels that it inherits. Losing a scheduler or a runner loses the run, so the node
     autoscaler leaves those two alone; workers may move. Arguments: root, component, isIrreplaceable. */}}
{{- define "daskyard.podMetadata" -}}
labels:
  {{- mustMerge (dict "app.kubernetes.io/component" .component) .root.Values.podLabels | toYaml | nindent 2 }}
{{- $annotations := deepCopy .root.Values.podAnnotations }}
{{- if .isIrreplaceable }}
{{- $_ := set $annotations "cluster-autoscaler.kubernetes.io/safe-to-evict" "false" }}
{{- end }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
