{{/* What the specs of all three kinds of pod begin with. Arguments: root, values (of the component: nodeSelector,
     tolerations, priorityClassName), isWorker, hasGpus. */}}
{{- define "daskyard.podSettings" -}}
serviceAccountName: {{ include "daskyard.accountName" .root }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  {{- include "daskyard.podSecurityContext" (dict "isWorker" .isWorker) | nindent 2 }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- $tolerations := .values.tolerations | default list }}
{{- if .hasGpus }}
{{- $tolerations = append $tolerations (dict "key" "nvidia.com/gpu" "operator" "Exists" "effect" "NoSchedule") | uniq }}
{{- end }}
{{- with $tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* A probe of /health. Arguments: a list of period and timeout in seconds and the number of failures that count. */}}
{{- define "daskyard.healthProbe" -}}
httpGet:
  path: /health
  port: http-dashboard
periodSeconds: {{ index . 0 }}
timeoutSeconds: {{ index . 1 }}
failureThreshold: {{ index . 2 }}
{{- end -}}
