{{/* Egress to the Kubernetes API: its Service listens on 443, what answers behind it often on 6443, and policies speak
     of what answers. The metadata address is never a part of it. */}}
{{- define "daskyard.platform.toApiServer" -}}
- to:
    {{- range .Values.networkPolicy.apiServerCidrs }}
    - ipBlock:
        cidr: {{ . }}
        {{- if eq (include "daskyard.network.holdsMetadata" .) "yes" }}
        except: [169.254.0.0/16]
        {{- end }}
    {{- end }}
  ports:
    {{- include "daskyard.network.tcp" (list 443 6443) | nindent 4 }}
{{- end -}}

{{/* Egress to schedulers of the namespaces that are served. Arguments: root, ports (numbers). */}}
{{- define "daskyard.platform.toSchedulers" -}}
- to:
    - namespaceSelector:
        {{- with .root.Values.operator.watchNamespaces }}
        matchExpressions:
          - key: kubernetes.io/metadata.name
            operator: In
            values:
              {{- toYaml . | nindent 14 }}
        {{- else }}
        matchLabels: {}
        {{- end }}
      podSelector:
        matchLabels:
          dask.org/component: scheduler
  ports:
    {{- include "daskyard.network.tcp" .ports | nindent 4 }}
{{- end -}}
