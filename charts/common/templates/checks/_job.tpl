{{/* The job file is read through before anything is installed; the runner checks what is in it. */}}
{{- define "daskyard.checks.job" -}}
{{- if not .Values.job -}}
{{- fail "job: give a job file with --set-file job=FILE" -}}
{{- end -}}
{{- $job := fromYaml .Values.job -}}
{{- if hasKey $job "Error" -}}
{{- fail (printf "job: is no YAML map (%s); give a job file with --set-file job=FILE" $job.Error) -}}
{{- end -}}
{{- range list "pipeline" "input" "output" -}}
{{- if not (get $job .) -}}
{{- fail (printf
      "job: has no key '%s'; give a job file that has pipeline, input and output with --set-file job=FILE"
      .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
