{{/* What the operator's code calls within the namespaces that it watches. docs/rbac.md names the call behind each rule;
     a rule without a call there is one too many. */}}
{{- define "daskyard.operator.rules" -}}
- apiGroups: [kubernetes.dask.org]
  resources: [daskclusters]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [kubernetes.dask.org]
  resources: [daskworkergroups]
  verbs: [get, list, watch, create, patch]
- apiGroups: [kubernetes.dask.org]
  resources: [daskjobs, daskautoscalers]
  verbs: [list, watch, patch]
- apiGroups: [kubernetes.dask.org]
  resources: [daskjobs/status]
  verbs: [patch]
# Only the admission plugin OwnerReferencesPermissionEnforcement (OpenShift has it on) asks for these: the operator
# makes owners of these kinds block on what they own.
- apiGroups: [kubernetes.dask.org]
  resources: [daskclusters/finalizers, daskjobs/finalizers, daskworkergroups/finalizers]
  verbs: [update]
- apiGroups: [""]
  resources: [pods, services]
  verbs: [get, list, watch, create, patch]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, create, delete]
{{- end -}}
