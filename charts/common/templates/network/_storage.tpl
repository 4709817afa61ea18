{{/* Egress to storage, and whatever networkPolicy.extraEgress adds, of workers and runner. */}}
{{- define "daskyard.network.storageRules" -}}
{{- range .Values.networkPolicy.storage }}
- to:
    {{- if .cidrs }}
    {{- range .cidrs }}
    - ipBlock:
        cidr: {{ . }}
        {{- if eq (include "daskyard.network.holdsMetadata" .) "yes" }}
        except: [169.254.0.0/16]
        {{- end }}
    {{- end }}
    {{- else }}
    - namespaceSelector:
        matchLabels:
          kubernetes.io/metadata.name: {{ .namespace }}
      podSelector:
        matchLabels:
          {{- toYaml .podLabels | nindent 10 }}
    {{- end }}
  ports:
    {{- include "daskyard.network.tcp" (list (int .port)) | nindent 4 }}
{{- end }}
{{- with .Values.networkPolicy.extraEgress }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Whether a block of addresses holds 169.254.0.0/16, where clouds hand out the node's credentials: "yes",
     "no", or "within" for a block that is no more than a part of it. Compared are the bits that the wider fixes. */}}
{{- define "daskyard.network.holdsMetadata" -}}
{{- $address := splitList "/" . | first | splitList "." -}}
{{- $bits := splitList "/" . | last | int -}}
{{- $ours := add (mul (index $address 0 | int) 256) (index $address 1 | int) -}}
{{- $theirs := add (mul 169 256) 254 -}}
{{- range until (int (max 0 (sub 16 $bits))) -}}
{{- $ours = div $ours 2 -}}
{{- $theirs = div $theirs 2 -}}
{{- end -}}
{{- if ne (int $ours) (int $theirs) -}}no{{- else if ge $bits 16 -}}within{{- else -}}yes{{- end -}}
{{- end -}}
