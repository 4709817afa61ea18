{{/* Pods get an account of their own and no token for it: nothing in them talks to the Kubernetes API. */}}
{{- define "daskyard.serviceAccount" -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  {{- include "daskyard.metadata" (dict "root" . "name" (include "daskyard.accountName" .)) | nindent 2 }}
automountServiceAccountToken: false
{{- end -}}
