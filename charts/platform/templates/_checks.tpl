{{/* Combinations that the schema cannot tell: each message names the key and the remedy. */}}
{{- define "daskyard.platform.checks" -}}
{{- $operator := .Values.operator -}}
{{- include "daskyard.checks.component" (dict "key" "operator" "values" $operator) -}}
{{- include "daskyard.checks.component" (dict "key" "controller" "values" .Values.controller) -}}
{{- if and $operator.workerAllocation.delaySeconds (not $operator.workerAllocation.batchSize) -}}
{{- fail "operator.workerAllocation.delaySeconds: waits between batches, and there are none; set batchSize, too" -}}
{{- end -}}
{{- $labels := .Values.namespaceDefaults.labels -}}
{{- include "daskyard.platform.checks.labels" (dict "key" "namespaceDefaults" "labels" $labels) -}}
{{- range .Values.networkPolicy.apiServerCidrs -}}
{{- if eq (include "daskyard.network.holdsMetadata" .) "within" -}}
{{- fail (printf
      "networkPolicy.apiServerCidrs: %s is within 169.254.0.0/16, where clouds hand out the node's credentials; drop it"
      .) -}}
{{- end -}}
{{- end -}}
{{- range $name, $namespace := .Values.namespaces -}}
{{- include "daskyard.platform.checks.labels" (dict "key" (printf "namespaces.%s" $name) "labels" $namespace.labels) -}}
{{- if eq $name $.Release.Namespace -}}
{{- fail (printf "namespaces.%s: is the operator's own namespace; give teams others" $name) -}}
{{- end -}}
{{- if and $operator.watchNamespaces (not (has $name $operator.watchNamespaces)) -}}
{{- fail (printf "namespaces.%s: the operator does not watch it; add it to operator.watchNamespaces" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "daskyard.platform.checks.labels" -}}
{{- range $label, $_ := .labels -}}
{{- if hasPrefix "pod-security.kubernetes.io/" $label -}}
{{- fail (printf "%s.labels: %s is always restricted here; take it out" $.key $label) -}}
{{- end -}}
{{- end -}}
{{- end -}}
