{{/* A worker's pod. Arguments: root, group. Before a worker goes, the preStop hook moves its results to others.
     A worker deep in compiled code answers late, so liveness waits three minutes before it gives up. */}}
{{- define "daskyard.worker.pod" -}}
{{- $ports := include "daskyard.ports" . | fromYaml -}}
{{- $group := include "daskyard.group" . | fromYaml -}}
{{- $volumes := dict "root" .root "resources" $group.resources "needsStorage" true -}}
{{- $maxSpill := include "daskyard.maxSpill" $group.resources.ephemeralStorage -}}
{{- $chartEnv := include "daskyard.storageEnv" .root | fromYaml -}}
{{- $_ := set $chartEnv "DASK_DISTRIBUTED__WORKER__MEMORY__MAX_SPILL" $maxSpill -}}
{{- include "daskyard.podSettings" (dict "root" .root "values" $group "isWorker" true "hasGpus" $group.gpus) }}
terminationGracePeriodSeconds: 90
containers:
  - name: worker
    image: {{ include (ternary "daskyard.gpuImage" "daskyard.image" (gt (int $group.gpus) 0)) .root }}
    imagePullPolicy: {{ .root.Values.image.pullPolicy }}
    args:
      {{- include "daskyard.worker.args" $group | nindent 6 }}
    env:
      - name: MEMORY_LIMIT
        valueFrom:
          resourceFieldRef:
            containerName: worker
            resource: limits.memory
            divisor: "1"
      {{- include "daskyard.env" (dict "chart" $chartEnv "user" $group.env) | nindent 6 }}
    ports:
      - name: worker
        containerPort: {{ $ports.worker }}
        protocol: TCP
      - name: nanny
        containerPort: {{ $ports.nanny }}
        protocol: TCP
      - name: http-dashboard
        containerPort: {{ $ports.workerDashboard }}
        protocol: TCP
    resources:
      {{- include "daskyard.resources" (pick $group "resources" "gpus") | nindent 6 }}
    securityContext:
      {{- include "daskyard.containerSecurityContext" . | nindent 6 }}
    lifecycle:
      preStop:
        exec:
          command: [python, -P, -m, jobs.pods.retire]
    startupProbe:
      {{- include "daskyard.healthProbe" (list 2 2 60) | nindent 6 }}
    readinessProbe:
      {{- include "daskyard.healthProbe" (list 10 5 3) | nindent 6 }}
    livenessProbe:
      {{- include "daskyard.healthProbe" (list 20 10 9) | nindent 6 }}
    volumeMounts:
      {{- include "daskyard.volumeMounts" $volumes | nindent 6 }}
volumes:
  {{- include "daskyard.volumes" $volumes | nindent 2 }}
{{- end -}}
