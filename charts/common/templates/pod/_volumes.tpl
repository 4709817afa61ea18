{{/* /tmp is the one writable place. Arguments: root, resources, needsStorage, needsJobFile. */}}
{{- define "daskyard.volumes" -}}
- name: tmp
  emptyDir:
    sizeLimit: {{ include "daskyard.tmpSize" .resources.ephemeralStorage }}
{{- if and .needsStorage .root.Values.storage.credentialsSecret }}
- name: credentials
  secret:
    secretName: {{ .root.Values.storage.credentialsSecret }}
    defaultMode: 0440
    items:
      - key: credentials
        path: credentials
{{- end }}
{{- if .needsJobFile }}
- name: job
  configMap:
    name: {{ include "daskyard.jobFileName" .root }}
    defaultMode: 0444
{{- end }}
{{- end -}}

{{/* The mounts of those volumes. Same arguments. */}}
{{- define "daskyard.volumeMounts" -}}
- name: tmp
  mountPath: /tmp
{{- if and .needsStorage .root.Values.storage.credentialsSecret }}
- name: credentials
  mountPath: /var/run/secrets/daskyard/s3
  readOnly: true
{{- end }}
{{- if .needsJobFile }}
- name: job
  mountPath: /etc/daskyard
  readOnly: true
{{- end }}
{{- end -}}
