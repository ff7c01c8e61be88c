{{/* dict "root" $ "monitor" .Values.podMonitor: how the agents are scraped. */}}
{{- define "pickd.endpoint" -}}
- port: http
  path: /metrics
  {{- with .monitor.interval }}
  interval: {{ . }}
  {{- end }}
  {{- with .monitor.scrapeTimeout }}
  scrapeTimeout: {{ . }}
  {{- end }}
  relabelings:
    # The alerts and the dashboard know the agents by this job.
    - targetLabel: job
      replacement: pickd
    - sourceLabels: [__meta_kubernetes_pod_node_name]
      targetLabel: node
    {{- with .monitor.relabelings }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .monitor.metricRelabelings }}
  metricRelabelings:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{- define "pickd.monitorSelector" -}}
namespaceSelector:
  matchNames:
    - {{ .Release.Namespace }}
selector:
  matchLabels:
    {{- include "pickd.selectorLabels" . | nindent 4 }}
{{- end -}}
