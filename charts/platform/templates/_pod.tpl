{{/* What the operator's pod and the uninstall Job's begin with: Pod Security "restricted" and a token, since both talk
     to the Kubernetes API. Arguments: root, account. */}}
{{- define "daskyard.platform.podSettings" -}}
{{- $values := .root.Values.operator -}}
serviceAccountName: {{ .account }}
automountServiceAccountToken: true
enableServiceLinks: false
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  {{- include "daskyard.podSecurityContext" (dict) | nindent 2 }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* A probe of kopf's health endpoint. Arguments: a list of period and timeout in seconds and the number of failures
     that count. */}}
{{- define "daskyard.operator.probe" -}}
httpGet:
  path: /healthz
  port: health
periodSeconds: {{ index . 0 }}
timeoutSeconds: {{ index . 1 }}
failureThreshold: {{ index . 2 }}
{{- end -}}
