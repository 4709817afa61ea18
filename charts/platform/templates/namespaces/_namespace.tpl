{{/* A team's namespace: what it leaves out follows namespaceDefaults. Merged by overwriting, since a plain merge takes
     false and 0 for left out. Arguments: root, name. */}}
{{- define "daskyard.namespace" -}}
{{- $defaults := mustMergeOverwrite (dict "create" true "members" list) (deepCopy .root.Values.namespaceDefaults) -}}
{{- mustMergeOverwrite $defaults (get .root.Values.namespaces .name | deepCopy) | toYaml -}}
{{- end -}}

{{/* Labels of a Namespace: the team's own, then ours. */}}
{{- define "daskyard.namespace.labels" -}}
{{- $labels := mustMergeOverwrite (deepCopy .labels) (include "daskyard.labels" .root | fromYaml) -}}
{{- range $mode := list "enforce" "audit" "warn" -}}
{{- $_ := set $labels (printf "pod-security.kubernetes.io/%s" $mode) "restricted" -}}
{{- $_ := set $labels (printf "pod-security.kubernetes.io/%s-version" $mode) "latest" -}}
{{- end -}}
{{- toYaml $labels -}}
{{- end -}}

{{/* The Role that a data scientist needs, and its binding. */}}
{{- define "daskyard.namespace.role" -}}
daskyard-user
{{- end -}}
