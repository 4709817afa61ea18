{{/* Pod Security "restricted", for a user of our own. Argument: isWorker. Ranks of a training talk over ephemeral
     ports; a worker's are narrowed (a safe sysctl), so that a network policy can name them. */}}
{{- define "daskyard.podSecurityContext" -}}
{{- $ports := include "daskyard.ports" . | fromYaml -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile:
  type: RuntimeDefault
{{- if .isWorker }}
sysctls:
  - name: net.ipv4.ip_local_port_range
    value: {{ printf "%v %v" $ports.trainingFirst $ports.trainingLast | quote }}
{{- end }}
{{- end -}}

{{- define "daskyard.containerSecurityContext" -}}
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
seccompProfile:
  type: RuntimeDefault
{{- end -}}
