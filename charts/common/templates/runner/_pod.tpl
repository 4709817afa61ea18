{{/* The runner's pod: it runs one job file to its commit and leaves. It never restarts by itself: retries are the
     runner's own, since only it can tell an error that is worth another try. A runtime knows no job: the controller
     adds the command line and the job file. */}}
{{- define "daskyard.runner.pod" -}}
{{- $values := .Values.runner -}}
{{- $chartEnv := include "daskyard.storageEnv" . | fromYaml -}}
{{- $volumes := dict "root" . "resources" $values.resources "needsStorage" true "needsJobFile" (hasKey .Values "job") -}}
{{- include "daskyard.podSettings" (dict "root" . "values" $values) }}
restartPolicy: Never
{{- with .Values.deadlineSeconds }}
activeDeadlineSeconds: {{ . | int }}
{{- end }}
containers:
  - name: runner
    image: {{ include "daskyard.image" . }}
    imagePullPolicy: {{ .Values.image.pullPolicy }}
    {{- if hasKey .Values "job" }}
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

{{/* The runner's pod, as a DaskJob and a runtime hold it. */}}
{{- define "daskyard.runner.template" -}}
metadata:
  {{- include "daskyard.podMetadata" (dict "root" . "component" "runner" "isIrreplaceable" true) | nindent 2 }}
spec:
  {{- include "daskyard.runner.pod" . | nindent 2 }}
{{- end -}}
