{{/* A worker group with its gaps filled: threads and resources that a further group leaves out are those of the
     default group; where it runs, what it is given and what it offers are its own. Renders a map.
     Arguments: root, group. */}}
{{- define "daskyard.group" -}}
{{- $default := .root.Values.workerGroups.default -}}
{{- $empty := dict "gpus" 0 "daskResources" dict "env" dict -}}
{{- $shared := dict "threads" $default.threads "resources" (deepCopy $default.resources) -}}
{{- mustMergeOverwrite $empty $shared (deepCopy (get .root.Values.workerGroups .group)) | toYaml -}}
{{- end -}}

{{/* The worker half of a DaskCluster or DaskWorkerGroup. Arguments: root, group. */}}
{{- define "daskyard.worker.spec" -}}
{{- $group := include "daskyard.group" . | fromYaml -}}
replicas: {{ $group.replicas }}
{{ include "daskyard.worker.template" . }}
{{- end -}}

{{/* A worker's pod, as groups and a runtime hold it. Arguments: root, group. */}}
{{- define "daskyard.worker.template" -}}
metadata:
  {{- include "daskyard.podMetadata" (dict "root" .root "component" "worker") | nindent 2 }}
spec:
  {{- include "daskyard.worker.pod" . | nindent 2 }}
{{- end -}}

{{/* What each worker of a group offers to tasks that ask for it. Renders a map. Argument: a group with its gaps
     filled. */}}
{{- define "daskyard.worker.offers" -}}
{{- $offered := deepCopy .daskResources -}}
{{- with .gpus }}{{ $_ := set $offered "GPU" . }}{{ end -}}
{{- toYaml $offered -}}
{{- end -}}

{{/* The further groups; the operator makes the default one from the DaskCluster. */}}
{{- define "daskyard.workerGroups" -}}
{{- range $group := omit .Values.workerGroups "default" | keys | sortAlpha }}
{{- $arguments := dict "root" $ "group" $group }}
---
apiVersion: kubernetes.dask.org/v1
kind: DaskWorkerGroup
metadata:
  {{- include "daskyard.metadata" (dict "root" $ "name" (include "daskyard.groupName" $arguments)) | nindent 2 }}
spec:
  cluster: {{ include "daskyard.name" $ }}
  worker:
    {{- include "daskyard.worker.spec" $arguments | nindent 4 }}
{{- end }}
{{- end -}}
