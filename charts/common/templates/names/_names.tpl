{{/* The cluster's name; a DaskJob, its DaskCluster and everything the operator derives from them bear it. */}}
{{- define "daskyard.name" -}}
{{- .Values.nameOverride | default .Release.Name -}}
{{- end -}}

{{/* A worker group's name. The operator itself gives the default group the suffix -default.
     Arguments: root, group (key of workerGroups). */}}
{{- define "daskyard.groupName" -}}
{{- printf "%s-%s" (include "daskyard.name" .root) .group -}}
{{- end -}}

{{/* The ConfigMap that holds the job file. */}}
{{- define "daskyard.jobFileName" -}}
{{- printf "%s-job" (include "daskyard.name" .) -}}
{{- end -}}

{{/* The account of a cluster's pods. It bears the cluster's name, but for a runtime's, which all its clusters share. */}}
{{- define "daskyard.accountName" -}}
{{- .Values.accountName | default (include "daskyard.name" .) -}}
{{- end -}}
