{{/* The scheduler's Service. The custom resource types targetPort as a string: a name passes, a number is refused. */}}
{{- define "daskyard.scheduler.service" -}}
{{- $ports := include "daskyard.ports" . | fromYaml -}}
type: ClusterIP
selector:
  dask.org/cluster-name: {{ include "daskyard.name" . }}
  dask.org/component: scheduler
ports:
  - name: tcp-comm
    protocol: TCP
    port: {{ $ports.scheduler }}
    targetPort: tcp-comm
  - name: http-dashboard
    protocol: TCP
    port: {{ $ports.schedulerDashboard }}
    targetPort: http-dashboard
{{- end -}}
