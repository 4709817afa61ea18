{{/* A worker's command line; the operator sets DASK_WORKER_NAME and DASK_SCHEDULER_ADDRESS. Tasks that ask for a
     resource, such as GPU, run only where it is offered. Argument: a group with its gaps filled. */}}
{{- define "daskyard.worker.args" -}}
{{- $ports := include "daskyard.ports" . | fromYaml -}}
{{- $offered := include "daskyard.worker.offers" . | fromYaml -}}
- dask
- worker
- --name
- $(DASK_WORKER_NAME)
- --worker-port
- {{ $ports.worker | quote }}
- --nanny-port
- {{ $ports.nanny | quote }}
- --dashboard-address
- {{ printf ":%v" $ports.workerDashboard | quote }}
- --nthreads
- {{ .threads | int | quote }}
- --memory-limit
- $(MEMORY_LIMIT)
- --death-timeout
- "30"
- --local-directory
- /tmp/dask
{{- if $offered }}
{{- $pairs := list }}
{{- range $name, $amount := $offered }}
{{- $pairs = append $pairs (printf "%s=%v" $name $amount) }}
{{- end }}
- --resources
- {{ join " " $pairs | quote }}
{{- end }}
{{- end -}}
