{{/* The runner's pod: it runs one job file to its commit and leaves. It never restarts by itself: retries are the
     runner's own, since only it can tell an error that is worth another try. */}}
{{- define "daskyard.runner.pod" -}}
{{- $values := .Values.runner -}}
{{- $chartEnv := include "daskyard.storageEnv" . | fromYaml -}}
{{- $volumes := dict "root" . "resources" $values.resources "needsStorage" true "needsJobFile" true -}}
{{- include "daskyard.podSettings" (dict "root" . "values" $values) }}
restartPolicy: Never
{{- with .Values.deadlineSeconds }}
activeDeadlineSeconds: {{ . | int }}
{{- end }}
containers:
  - name: runner
    image: {{ include "daskyard.image" . }}
    imagePullPolicy: {{ .Values.image.pullPolicy }}
    args:
      - daskyard
      - run
      - /etc/daskyard/job.yaml
      - --retries
      - {{ .Values.retries | int | quote }}
      {{- with .Values.runId }}
      - --run-id
      - {{ . | quote }}
      {{- end }}
    env:
      {{- include "daskyard.env" (dict "chart" $chartEnv "user" $values.env) | nindent 6 }}
    resources:
      {{- include "daskyard.resources" (dict "resources" $values.resources) | nindent 6 }}
    securityContext:
      {{- include "daskyard.containerSecurityContext" . | nindent 6 }}
    volumeMounts:
      {{- include "daskyard.volumeMounts" $volumes | nindent 6 }}
volumes:
  {{- include "daskyard.volumes" $volumes | nindent 2 }}
{{- end -}}
