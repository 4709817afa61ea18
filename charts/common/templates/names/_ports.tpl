{{/* Ports are constants: the operator knows 8786, and the network policies name the others. */}}
{{- define "daskyard.ports" -}}
scheduler: 8786
schedulerDashboard: 8787
worker: 8788
nanny: 8789
workerDashboard: 8790
trainingFirst: 40000
trainingLast: 40999
{{- end -}}
