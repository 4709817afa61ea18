{{/* Names the remedy where the cluster does not know the monitors' kinds. */}}
{{- define "daskyard.monitoring.check" -}}
{{- if not (.Capabilities.APIVersions.Has "monitoring.coreos.com/v1") -}}
{{- fail (print
      "monitoring.enabled: the cluster does not serve monitoring.coreos.com/v1; install the Prometheus operator first "
      "(for helm template: --api-versions monitoring.coreos.com/v1)") -}}
{{- end -}}
{{- end -}}

{{- define "daskyard.monitoring.metadata" -}}
name: {{ .name }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- mustMerge (include "daskyard.labels" .root | fromYaml) .root.Values.monitoring.labels | toYaml | nindent 2 }}
{{- end -}}

{{/* Whose pods are scraped: those of the namespaces that the operator watches. */}}
{{- define "daskyard.monitoring.namespaces" -}}
{{- with .Values.operator.watchNamespaces -}}
matchNames:
  {{- toYaml . | nindent 2 }}
{{- else -}}
any: true
{{- end -}}
{{- end -}}
