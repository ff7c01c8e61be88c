{{- define "pickd.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "pickd.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Never changed: a DaemonSet's selector is immutable. */}}
{{- define "pickd.selectorLabels" -}}
app.kubernetes.io/name: {{ include "pickd.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "pickd.labels" -}}
{{ include "pickd.podLabels" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{ include "pickd.chartLabel" . }}
{{- end -}}

{{- define "pickd.chartLabel" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{/* Without the chart's version: another version of the chart that changes nothing in the pods restarts none. */}}
{{- define "pickd.podLabels" -}}
{{ include "pickd.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: agent
app.kubernetes.io/part-of: pickd
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "pickd.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "pickd.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* dict "root" $ "image" .Values.image "tag" "1.0": the image's reference. */}}
{{- define "pickd.image" -}}
{{- $registry := default .image.registry .root.Values.global.imageRegistry -}}
{{- with $registry }}{{ . }}/{{ end -}}
{{- .image.repository -}}
{{- if .image.digest }}@{{ .image.digest }}{{ else }}:{{ default .tag .image.tag }}{{ end -}}
{{- end -}}

{{- define "pickd.imagePullSecrets" -}}
{{- with concat .Values.imagePullSecrets .Values.global.imagePullSecrets -}}
imagePullSecrets:
{{ toYaml . }}
{{- end -}}
{{- end -}}

{{- define "pickd.configMapName" -}}
{{- default (include "pickd.fullname" .) .Values.existingConfigMap -}}
{{- end -}}

{{- define "pickd.socketPath" -}}/var/run/pickd/pickd.sock{{- end -}}

{{/* Where Consul is, or nothing if it is not watched, or if config.consul alone says where. */}}
{{- define "pickd.consulAddress" -}}
{{- $named := or .Values.consul.address .Values.etcd.endpoints .Values.existingConfigMap -}}
{{- range list "consul" "etcd" "file" }}{{ if hasKey $.Values.config . }}{{ $named = true }}{{ end }}{{ end -}}
{{- if $named }}{{ .Values.consul.address }}{{ else }}http://$(HOST_IP):8500{{ end -}}
{{- end -}}

{{/* Two pods of one node would be in each other's way: on its ports, on the socket, in the folder. */}}
{{- define "pickd.isAloneOnNode" -}}
{{- if or .Values.hostPort.enabled .Values.hostNetwork .Values.socket.enabled .Values.state.enabled }}true{{ end -}}
{{- end -}}

{{- define "pickd.isLoopback" -}}
{{- if or (hasPrefix "127." .Values.bindAddress) (eq .Values.bindAddress "[::1]") }}true{{ end -}}
{{- end -}}

{{/* Refuses values that contradict each other, each of which is right by itself. */}}
{{- define "pickd.validate" -}}
{{- if and .Values.hostPort.enabled .Values.hostNetwork -}}
{{- fail "hostPort.enabled and hostNetwork: with the node's network, port is a port of the node already" -}}
{{- end -}}
{{- if and (include "pickd.isLoopback" .) (not .Values.hostNetwork) -}}
{{- fail (printf "bindAddress %s: within a pod of its own network only the pod itself reaches it; use it with hostNetwork" .Values.bindAddress) -}}
{{- end -}}
{{- if and (include "pickd.isLoopback" .) .Values.service.enabled -}}
{{- fail (printf "bindAddress %s: a Service does not reach it; set service.enabled=false" .Values.bindAddress) -}}
{{- end -}}
{{- if and .Values.podMonitor.enabled .Values.serviceMonitor.enabled -}}
{{- fail "podMonitor.enabled and serviceMonitor.enabled: each agent would be scraped twice" -}}
{{- end -}}
{{- if and .Values.serviceMonitor.enabled (not .Values.service.enabled) -}}
{{- fail "serviceMonitor.enabled needs service.enabled; podMonitor does not" -}}
{{- end -}}
{{- if and .Values.existingConfigMap .Values.config -}}
{{- fail "existingConfigMap and config: one of them" -}}
{{- end -}}
{{- if .Values.existingConfigMap -}}
{{- range $name, $secret := dict "consul.token" .Values.consul.token "consul.tls" .Values.consul.tls "etcd.password" .Values.etcd.password "etcd.tls" .Values.etcd.tls "adminToken" .Values.adminToken "sessionKey" .Values.sessionKey -}}
{{- if $secret.existingSecret -}}
{{- fail (printf "%s.existingSecret: with existingConfigMap, name the file in that configuration, and mount it by extraVolumes" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- with .Values.etcd.password -}}
{{- if and .existingSecret (not (dig "etcd" "username" "" $.Values.config)) -}}
{{- fail "etcd.password.existingSecret needs config.etcd.username" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.hostFolders.chown (or .Values.socket.enabled .Values.state.enabled) (not .Values.podSecurityContext.runAsUser) -}}
{{- fail "hostFolders.chown needs podSecurityContext.runAsUser, to know whose the folders are" -}}
{{- end -}}
{{- range $name, $tls := dict "consul.tls" .Values.consul.tls "etcd.tls" .Values.etcd.tls -}}
{{- if ne (empty $tls.certKey) (empty $tls.keyKey) -}}
{{- fail (printf "%s: certKey and keyKey go together" $name) -}}
{{- end -}}
{{- end -}}
{{- with dig "api" "listen" list .Values.config -}}
{{- $listens := false -}}
{{- range . }}{{ if hasSuffix (printf ":%d" (int $.Values.port)) . }}{{ $listens = true }}{{ end }}{{ end -}}
{{- if not $listens -}}
{{- fail (printf "config.api.listen: no address has port %d, which probes, Service and monitors use: see port and bindAddress" (int $.Values.port)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
