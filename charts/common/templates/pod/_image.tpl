{{/* The image of schedulers, runners and workers without GPUs. A digest wins over a tag. */}}
{{- define "daskyard.image" -}}
{{- $image := .Values.image -}}
{{- include "daskyard.imageReference" (dict "image" $image "tag" ($image.tag | default .Chart.AppVersion)) -}}
{{- end -}}

{{/* The image of workers with GPUs: what gpuImage leaves out follows image, with -gpu behind the tag. */}}
{{- define "daskyard.gpuImage" -}}
{{- $tag := printf "%s-gpu" (.Values.image.tag | default .Chart.AppVersion) -}}
{{- $own := .Values.gpuImage -}}
{{- $image := dict "repository" ($own.repository | default .Values.image.repository) "digest" $own.digest -}}
{{- include "daskyard.imageReference" (dict "image" $image "tag" ($own.tag | default $tag)) -}}
{{- end -}}

{{/* Arguments: image (repository, digest), tag. */}}
{{- define "daskyard.imageReference" -}}
{{- if .image.digest -}}
{{- printf "%s@%s" .image.repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" .image.repository .tag -}}
{{- end -}}
{{- end -}}
