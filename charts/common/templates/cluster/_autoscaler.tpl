{{/* The operator's autoscaler; it scales the default group and knows no other. */}}
{{- define "daskyard.autoscaler" -}}
{{- with .Values.autoscaling }}
{{- if .enabled }}
apiVersion: kubernetes.dask.org/v1
kind: DaskAutoscaler
metadata:
  {{- include "daskyard.metadata" (dict "root" $ "name" (include "daskyard.name" $)) | nindent 2 }}
spec:
  cluster: {{ include "daskyard.name" $ }}
  minimum: {{ .minimum | int }}
  maximum: {{ .maximum | int }}
{{- end }}
{{- end }}
{{- end -}}
