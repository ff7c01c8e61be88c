{{/* Not the labels of the agents: the Service must not select the pod that tests it. */}}
{{- define "pickd.testLabels" -}}
app.kubernetes.io/name: {{ include "pickd.name" . }}-test
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* The agent of the test pod's node, by a way that the values open. */}}
{{- define "pickd.testedAgent" -}}
{{- if include "pickd.isLoopback" . -}}
http://{{ .Values.bindAddress }}:{{ .Values.port }}
{{- else if .Values.service.enabled -}}
http://{{ include "pickd.fullname" . }}.{{ .Release.Namespace }}.svc:{{ .Values.service.port }}
{{- else if .Values.hostPort.enabled -}}
http://{{ default "$(HOST_IP)" .Values.hostPort.ip }}:{{ .Values.hostPort.port }}
{{- else if .Values.hostNetwork -}}
http://$(HOST_IP):{{ .Values.port }}
{{- else -}}
unix:{{ include "pickd.socketPath" . }}
{{- end -}}
{{- end -}}
