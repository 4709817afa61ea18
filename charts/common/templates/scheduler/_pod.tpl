{{/* The scheduler's pod. It plans and passes on; it never reads storage, so it holds no credentials.
     A restart forgets every task, so liveness waits two minutes before it gives up. */}}
{{- define "daskyard.scheduler.pod" -}}
{{- $ports := include "daskyard.ports" . | fromYaml -}}
{{- $values := .Values.scheduler -}}
{{- $volumes := dict "root" . "resources" $values.resources -}}
{{- $autoscaled := include "daskyard.groupName" (dict "root" . "group" "default") -}}
{{- $chartEnv := dict "DASK_DASKYARD__AUTOSCALED_GROUP" $autoscaled -}}
{{- include "daskyard.podSettings" (dict "root" . "values" $values) }}
containers:
  - name: scheduler
    image: {{ include "daskyard.image" . }}
    imagePullPolicy: {{ .Values.image.pullPolicy }}
    args:
      - dask
      - scheduler
      - --port
      - {{ $ports.scheduler | quote }}
      - --dashboard-address
      - {{ printf ":%v" $ports.schedulerDashboard | quote }}
      - --preload
      - jobs.pods.groups
      - --preload
      - jobs.pods.state
      - --preload
      - jobs.pods.worker_ttl
    env:
      {{- include "daskyard.env" (dict "chart" $chartEnv "user" $values.env) | nindent 6 }}
    ports:
      - name: tcp-comm
        containerPort: {{ $ports.scheduler }}
        protocol: TCP
      - name: http-dashboard
        containerPort: {{ $ports.schedulerDashboard }}
        protocol: TCP
    resources:
      {{- include "daskyard.resources" (dict "resources" $values.resources) | nindent 6 }}
    securityContext:
      {{- include "daskyard.containerSecurityContext" . | nindent 6 }}
    startupProbe:
      {{- include "daskyard.healthProbe" (list 2 2 60) | nindent 6 }}
    readinessProbe:
      {{- include "daskyard.healthProbe" (list 5 5 3) | nindent 6 }}
    livenessProbe:
      {{- include "daskyard.healthProbe" (list 15 10 8) | nindent 6 }}
    volumeMounts:
      {{- include "daskyard.volumeMounts" $volumes | nindent 6 }}
volumes:
  {{- include "daskyard.volumes" $volumes | nindent 2 }}
{{- end -}}

{{/* The scheduler's pod and Service, as a DaskCluster and a runtime hold them. */}}
{{- define "daskyard.scheduler.template" -}}
metadata:
  {{- include "daskyard.podMetadata" (dict "root" . "component" "scheduler" "isIrreplaceable" true) | nindent 2 }}
spec:
  {{- include "daskyard.scheduler.pod" . | nindent 2 }}
service:
  {{- include "daskyard.scheduler.service" . | nindent 2 }}
{{- end -}}
