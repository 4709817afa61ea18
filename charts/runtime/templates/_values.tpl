{{/* The values with which the library's templates render the pods of a cluster whose name nobody knows yet: the
     controller puts it in place of $(CLUSTER). Hardware classes are groups, and the one that fills the gaps is cpu. */}}
{{- define "daskyard.runtime.values" -}}
{{- $groups := mustMerge (dict "default" .Values.hardware.cpu) .Values.hardware -}}
{{- $own := dict "nameOverride" "$(CLUSTER)" "accountName" (include "daskyard.runtime.account" .) "runnerComponent" "mljob-runner" -}}
{{- mustMerge $own (dict "workerGroups" $groups) (omit .Values "nameOverride") | toYaml -}}
{{- end -}}

{{/* The account of all pods of the runtime. It does not bear the runtime's name alone: every namespace has an account
     `default` of its own. */}}
{{- define "daskyard.runtime.account" -}}
{{- printf "daskyard-%s" (include "daskyard.name" .) -}}
{{- end -}}
