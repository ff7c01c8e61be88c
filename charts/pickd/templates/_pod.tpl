{{/* dict "root" $ "path" "/healthz" "timing" {...}: a probe. On loopback it asks there, as the kubelet shares the node's network. */}}
{{- define "pickd.probe" -}}
httpGet:
  path: {{ .path }}
  port: http
  {{- if include "pickd.isLoopback" .root }}
  host: {{ .root.Values.bindAddress | trimPrefix "[" | trimSuffix "]" | quote }}
  {{- end }}
{{- with .timing }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Not below /etc/pickd: nothing can be mounted within a ConfigMap, which is read-only. */}}
{{- define "pickd.secretFolder" -}}/var/run/secrets/pickd/{{ . }}{{- end -}}

{{/* The secrets that are mounted, by the name of their folder: as JSON. */}}
{{- define "pickd.secrets" -}}
{{- $secrets := dict -}}
{{- with .Values.consul.token.existingSecret }}{{ $_ := set $secrets "consul" . }}{{ end -}}
{{- with .Values.consul.tls.existingSecret }}{{ $_ := set $secrets "consul-tls" . }}{{ end -}}
{{- with .Values.etcd.password.existingSecret }}{{ $_ := set $secrets "etcd" . }}{{ end -}}
{{- with .Values.etcd.tls.existingSecret }}{{ $_ := set $secrets "etcd-tls" . }}{{ end -}}
{{- with .Values.adminToken.existingSecret }}{{ $_ := set $secrets "admin" . }}{{ end -}}
{{- with .Values.sessionKey.existingSecret }}{{ $_ := set $secrets "session" . }}{{ end -}}
{{- toJson $secrets -}}
{{- end -}}

{{- define "pickd.hostFolderMounts" -}}
{{- $mounts := list -}}
{{- if .Values.socket.enabled }}{{ $mounts = append $mounts (dict "name" "socket" "mountPath" "/var/run/pickd") }}{{ end -}}
{{- if .Values.state.enabled }}{{ $mounts = append $mounts (dict "name" "state" "mountPath" "/var/lib/pickd") }}{{ end -}}
{{- with $mounts }}{{ toYaml . }}{{ end -}}
{{- end -}}
