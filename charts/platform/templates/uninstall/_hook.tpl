{{/* Name, labels and the annotations of a hook that runs when everything else has gone. What others need comes first,
     the Job last. A Job that failed stays, for its log. Arguments: root, weight, namespace. */}}
{{- define "daskyard.uninstall.metadata" -}}
name: {{ include "daskyard.uninstall.name" .root }}
{{- with .namespace }}
namespace: {{ . }}
{{- end }}
labels:
  {{- include "daskyard.labels" .root | nindent 2 }}
annotations:
  helm.sh/hook: post-delete
  helm.sh/hook-weight: {{ .weight | quote }}
  helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}
