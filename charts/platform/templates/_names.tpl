{{/* The operator's Deployment, account, roles and policy. */}}
{{- define "daskyard.operator.name" -}}
{{- printf "%s-operator" .Release.Name -}}
{{- end -}}

{{/* The same of the controller of MLJobs. */}}
{{- define "daskyard.controller.name" -}}
{{- printf "%s-controller" .Release.Name -}}
{{- end -}}

{{/* The Role that lets the controller's pods settle who leads. */}}
{{- define "daskyard.controller.lease" -}}
{{- printf "%s-lease" (include "daskyard.controller.name" .) -}}
{{- end -}}

{{/* What is there for one moment only, after the operator has been uninstalled. */}}
{{- define "daskyard.uninstall.name" -}}
{{- printf "%s-release-finalizers" .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* What a pod of the platform bears: the labels of all objects, with a name of its own. The policies of clusters let
     in whoever bears app.kubernetes.io/name: daskyard-operator or daskyard-controller. Arguments: root, name. */}}
{{- define "daskyard.platform.podLabels" -}}
{{- $labels := include "daskyard.labels" .root | fromYaml -}}
{{- $_ := set $labels "app.kubernetes.io/name" .name -}}
{{- toYaml $labels -}}
{{- end -}}

{{/* By what Deployments and policies know those pods. Same arguments. */}}
{{- define "daskyard.platform.selector" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end -}}

{{/* Name and labels of an object outside of the release's namespace. Arguments: root, name, namespace (none for objects
     of the cluster). */}}
{{- define "daskyard.platform.metadata" -}}
name: {{ .name }}
{{- with .namespace }}
namespace: {{ . }}
{{- end }}
labels:
  {{- include "daskyard.labels" .root | nindent 2 }}
{{- end -}}
