{{/* Storage that is named must be reachable, and by no detour over the metadata address. */}}
{{- define "daskyard.checks.storage" -}}
{{- $storage := .Values.storage -}}
{{- $policy := .Values.networkPolicy -}}
{{- if and $policy.enabled (or $storage.credentialsSecret $storage.endpoint) (not $policy.storage) -}}
{{- $key := ternary "storage.credentialsSecret" "storage.endpoint" (not (empty $storage.credentialsSecret)) -}}
{{- fail (printf
      "networkPolicy.storage: is empty, so %s has no use; list where storage is, e.g. [{cidrs: [0.0.0.0/0], port: 443}]"
      $key) -}}
{{- end -}}
{{- range $policy.storage -}}
{{- range .cidrs -}}
{{- if eq (include "daskyard.network.holdsMetadata" .) "within" -}}
{{- fail (printf
      "networkPolicy.storage: %s lies within 169.254.0.0/16, where clouds hand out the node's credentials; take it out"
      .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $policy.extraEgress -}}
{{- range .to -}}
{{- with .ipBlock -}}
{{- $held := include "daskyard.network.holdsMetadata" .cidr -}}
{{- if or (eq $held "within") (and (eq $held "yes") (not (has "169.254.0.0/16" .except))) -}}
{{- fail (printf
      "networkPolicy.extraEgress: %s holds 169.254.0.0/16, where clouds hand out the node's credentials; %s"
      .cidr (ternary "add except: [169.254.0.0/16]" "take it out" (eq $held "yes"))) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
