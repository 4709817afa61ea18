{{/* What the pods of operator, controller and uninstall Job begin with: Pod Security "restricted" and a token, since all
     talk to the Kubernetes API. Arguments: root, account, values (nodeSelector, tolerations, priorityClassName). */}}
{{- define "daskyard.platform.podSettings" -}}
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
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* A probe over HTTP. Arguments: a list of path, name of the port, period and timeout in seconds, and the number of
     failures that count. */}}
{{- define "daskyard.platform.probe" -}}
httpGet:
  path: {{ index . 0 }}
  port: {{ index . 1 }}
periodSeconds: {{ index . 2 }}
timeoutSeconds: {{ index . 3 }}
failureThreshold: {{ index . 4 }}
{{- end -}}
