{{/* What holds for scheduler, runner and each group alike. Arguments: key, values. */}}
{{- define "daskyard.checks.component" -}}
{{- $resources := .values.resources -}}
{{- with $resources.cpuRequest -}}
{{- if gt (include "daskyard.millicores" . | int) (include "daskyard.millicores" $resources.cpu | int) -}}
{{- fail (printf
      "%s.resources.cpuRequest: %s is above the limit, %s; raise cpu or lower cpuRequest"
      $.key . $resources.cpu) -}}
{{- end -}}
{{- end -}}
{{- if lt (include "daskyard.mebibytes" $resources.memory | int) 256 -}}
{{- fail (printf "%s.resources.memory: %s does not hold Python and Dask; take 256Mi or more" .key $resources.memory) -}}
{{- end -}}
{{- if lt (include "daskyard.mebibytes" $resources.ephemeralStorage | int) 256 -}}
{{- fail (printf
      "%s.resources.ephemeralStorage: %s leaves no room for /tmp and logs; take 256Mi or more"
      .key $resources.ephemeralStorage) -}}
{{- end -}}
{{- range $name, $_ := .values.env -}}
{{- if has $name (list "AWS_ACCESS_KEY_ID" "AWS_SECRET_ACCESS_KEY" "AWS_SESSION_TOKEN") -}}
{{- fail (printf
      "%s.env.%s: credentials do not belong in values; put them in a Secret and name it in storage.credentialsSecret"
      $.key $name) -}}
{{- end -}}
{{- if has $name (list "MEMORY_LIMIT" "DASK_WORKER_NAME" "DASK_SCHEDULER_ADDRESS") -}}
{{- fail (printf "%s.env.%s: is set from the pod itself; take it out" $.key $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
