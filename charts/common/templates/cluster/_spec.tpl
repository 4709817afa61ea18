{{/* The spec of a DaskCluster, of its own or within a DaskJob. */}}
{{- define "daskyard.cluster.spec" -}}
scheduler:
  {{- include "daskyard.scheduler.template" . | nindent 2 }}
worker:
  {{- include "daskyard.worker.spec" (dict "root" . "group" "default") | nindent 2 }}
{{- end -}}
