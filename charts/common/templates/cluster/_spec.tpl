{{/* The spec of a DaskCluster, of its own or within a DaskJob. */}}
{{- define "daskyard.cluster.spec" -}}
scheduler:
  metadata:
    {{- include "daskyard.podMetadata" (dict "root" . "component" "scheduler" "isIrreplaceable" true) | nindent 4 }}
  spec:
    {{- include "daskyard.scheduler.pod" . | nindent 4 }}
  service:
    {{- include "daskyard.scheduler.service" . | nindent 4 }}
worker:
  {{- include "daskyard.worker.spec" (dict "root" . "group" "default") | nindent 2 }}
{{- end -}}
