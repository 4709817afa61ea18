{{/* Combinations that the schema cannot tell: each message names the key and the remedy. Arguments: name (of the
     runtime), key (where it comes from), root (with the values of daskyard.runtime.values). */}}
{{- define "daskyard.runtime.checks" -}}
{{- if gt (len .name) 20 -}}
{{- fail (printf "%s: %s has %d characters; take at most 20" .key .name (len .name)) -}}
{{- end -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" .name) -}}
{{- fail (printf
      "%s: %s cannot name a runtime; take lowercase letters, digits and '-', a letter first and no '-' last"
      .key .name) -}}
{{- end -}}
{{- include "daskyard.checks.pods" .root -}}
{{- if hasKey .root.Values.hardware "default" -}}
{{- fail "hardware.default: the operator has a group of that name; take another name, such as cpu" -}}
{{- end -}}
{{- range $class, $_ := .root.Values.hardware -}}
{{- $values := include "daskyard.group" (dict "root" $.root "group" $class) | fromYaml -}}
{{- include "daskyard.checks.worker" (dict "key" (printf "hardware.%s" $class) "values" $values) -}}
{{- end -}}
{{- range $name, $_ := .root.Values.runner.env -}}
{{- if has $name (list "DASK_DASKYARD__START_TIMEOUT" "DASK_DASKYARD__MIN_WORKERS") -}}
{{- fail (printf "runner.env.%s: follows from each MLJob; take it out" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
