{{/* Names and values as a list of env, sorted, the user's value before the chart's; "[]" for none.
     Arguments: chart (map), user (map). */}}
{{- define "daskyard.env" -}}
{{- $env := list -}}
{{- $all := deepCopy .chart -}}
{{- /* Not merge: it takes an empty string for none. */ -}}
{{- range $name, $value := .user -}}
{{- $_ := set $all $name $value -}}
{{- end -}}
{{- range $name, $value := $all -}}
{{- $env = append $env (dict "name" $name "value" $value) -}}
{{- end -}}
{{- toYaml $env -}}
{{- end -}}

{{/* Where storage is, for the two kinds of pod that reach it: runner and workers. Endpoint and region are no secrets;
     the credentials are a file, never env. Renders a map. Argument: root. */}}
{{- define "daskyard.storageEnv" -}}
{{- $storage := .Values.storage -}}
AWS_DEFAULT_REGION: {{ $storage.region | quote }}
{{- with $storage.endpoint }}
AWS_ENDPOINT_URL: {{ . | quote }}
{{- end }}
{{- if $storage.credentialsSecret }}
AWS_SHARED_CREDENTIALS_FILE: /var/run/secrets/daskyard/s3/credentials
{{- end }}
{{- end -}}
