{{/* A quantity of memory or storage ("512Mi", "2Gi", "1Ti"; the schema admits no other units) in mebibytes. */}}
{{- define "daskyard.mebibytes" -}}
{{- $units := dict "Mi" 1 "Gi" 1024 "Ti" 1048576 -}}
{{- $unit := regexFind "[MGT]i$" . -}}
{{- mul (trimSuffix $unit . | int64) (get $units $unit) -}}
{{- end -}}

{{/* A quantity of CPU ("2", "250m") in millicores. */}}
{{- define "daskyard.millicores" -}}
{{- if hasSuffix "m" . -}}
{{- trimSuffix "m" . -}}
{{- else -}}
{{- mul (int64 .) 1000 -}}
{{- end -}}
{{- end -}}

{{/* Memory and storage are requested in full, since neither can be taken back; CPU may be requested below its limit.
     Arguments: resources, gpus. */}}
{{- define "daskyard.resources" -}}
{{- $resources := .resources -}}
requests:
  cpu: {{ $resources.cpuRequest | default $resources.cpu | quote }}
  memory: {{ $resources.memory | quote }}
  ephemeral-storage: {{ $resources.ephemeralStorage | quote }}
limits:
  cpu: {{ $resources.cpu | quote }}
  memory: {{ $resources.memory | quote }}
  ephemeral-storage: {{ $resources.ephemeralStorage | quote }}
  {{- with .gpus }}
  nvidia.com/gpu: {{ . | int | quote }}
  {{- end }}
{{- end -}}

{{/* Shares of the ephemeral-storage limit: 90 % may lie under /tmp, the rest is left to the container's logs. */}}
{{- define "daskyard.tmpSize" -}}
{{- printf "%dMi" (div (mul (include "daskyard.mebibytes" . | int64) 9) 10) -}}
{{- end -}}

{{/* 70 % may be spilled data; what is left of /tmp holds compiled kernels and the files of the pipelines. */}}
{{- define "daskyard.maxSpill" -}}
{{- printf "%dMiB" (div (mul (include "daskyard.mebibytes" . | int64) 7) 10) -}}
{{- end -}}
