{{/* Combinations that the schema cannot tell: each message names the key and the remedy. */}}
{{- define "daskyard.checks" -}}
{{- include "daskyard.checks.name" . -}}
{{- include "daskyard.checks.groups" . -}}
{{- include "daskyard.checks.autoscaling" . -}}
{{- include "daskyard.checks.pods" . -}}
{{- end -}}

{{/* What holds for the pods of a cluster and of a runtime alike. */}}
{{- define "daskyard.checks.pods" -}}
{{- include "daskyard.checks.storage" . -}}
{{- include "daskyard.checks.component" (dict "key" "scheduler" "values" .Values.scheduler) -}}
{{- with .Values.runner -}}
{{- include "daskyard.checks.component" (dict "key" "runner" "values" .) -}}
{{- end -}}
{{- range $label, $_ := .Values.podLabels -}}
{{- if hasPrefix "dask.org/" $label -}}
{{- fail (printf "podLabels: %s belongs to the operator; take it out" $label) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The operator takes up to 53 characters and no dots; the scheduler's Service wants a letter first. */}}
{{- define "daskyard.checks.name" -}}
{{- $name := include "daskyard.name" . -}}
{{- $key := ternary "nameOverride" "release name" (not (empty .Values.nameOverride)) -}}
{{- if gt (len $name) 53 -}}
{{- fail (printf "%s: %s has %d characters; take at most 53" $key $name (len $name)) -}}
{{- end -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) -}}
{{- fail (printf
      "%s: %s cannot name a cluster; take lowercase letters, digits and '-', a letter first and no '-' last"
      $key $name) -}}
{{- end -}}
{{- end -}}

{{- define "daskyard.checks.groups" -}}
{{- range $group, $_ := .Values.workerGroups -}}
{{- $key := printf "workerGroups.%s" $group -}}
{{- $arguments := dict "root" $ "group" $group -}}
{{- $name := include "daskyard.groupName" $arguments -}}
{{- if not (regexMatch "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$" $group) -}}
{{- fail (printf "%s: cannot name a group; take lowercase letters, digits and '-', and no '-' at either end" $key) -}}
{{- end -}}
{{- if eq $group "scheduler" -}}
{{- fail (printf "%s: %s is the scheduler's own name; take another name for the group" $key $name) -}}
{{- end -}}
{{- if gt (len $name) 63 -}}
{{- fail (printf
      "%s: %s has %d characters; shorten the group's or the release's name to 63 together"
      $key $name (len $name)) -}}
{{- end -}}
{{- $values := include "daskyard.group" $arguments | fromYaml -}}
{{- include "daskyard.checks.worker" (dict "key" $key "values" $values) -}}
{{- end -}}
{{- end -}}

{{/* A group or a hardware class with its gaps filled. Arguments: key, values. */}}
{{- define "daskyard.checks.worker" -}}
{{- if hasKey .values.daskResources "GPU" -}}
{{- fail (printf "%s.daskResources: GPU follows the number of devices; set %s.gpus instead" .key .key) -}}
{{- end -}}
{{- include "daskyard.checks.component" . -}}
{{- end -}}

{{- define "daskyard.checks.autoscaling" -}}
{{- with .Values.autoscaling -}}
{{- $replicas := int $.Values.workerGroups.default.replicas -}}
{{- if .enabled -}}
{{- if gt (int .minimum) (int .maximum) -}}
{{- fail (printf
      "autoscaling.minimum: %d is above autoscaling.maximum, %d; swap or align them"
      (int .minimum) (int .maximum)) -}}
{{- end -}}
{{- if or (lt $replicas (int .minimum)) (gt $replicas (int .maximum)) -}}
{{- $bounds := printf "%d to %d" (int .minimum) (int .maximum) -}}
{{- fail (printf
      "workerGroups.default.replicas: %d lies outside of autoscaling's bounds, %s; start within them"
      $replicas $bounds) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
