{{/*
The configuration file. Helm's toToml writes whole numbers as floats ("100000.0"), which pickd refuses, and sorts the
tables of registries, whose order is their priority: hence these templates. Every key of `config` passes through
them, known or not; the schema of the values and pickd itself refuse unknown ones.
*/}}

{{/* What `config` says, and what the chart adds: as JSON. */}}
{{- define "pickd.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- $added := dict "api" dict -}}
{{- if not (dig "api" "listen" list $config) -}}
{{- $listen := list (printf "%s:%d" .Values.bindAddress (int .Values.port)) -}}
{{- if .Values.socket.enabled }}{{ $listen = append $listen (printf "unix:%s" (include "pickd.socketPath" .)) }}{{ end -}}
{{- $_ := set $added.api "listen" $listen -}}
{{- end -}}
{{- if .Values.adminToken.existingSecret -}}
{{- $_ := set $added.api "admin_token_file" (printf "%s/%s" (include "pickd.secretFolder" "admin") .Values.adminToken.key) -}}
{{- end -}}
{{- if .Values.sessionKey.existingSecret -}}
{{- $_ := set $added.api "session_key_file" (printf "%s/%s" (include "pickd.secretFolder" "session") .Values.sessionKey.key) -}}
{{- end -}}
{{- if include "pickd.consulAddress" . }}{{ $_ := set $added "consul" dict }}{{ end -}}
{{- if .Values.etcd.endpoints }}{{ $_ := set $added "etcd" dict }}{{ end -}}
{{- if .Values.consul.token.existingSecret -}}
{{- $_ := set $added "consul" (dict "token_file" (printf "%s/%s" (include "pickd.secretFolder" "consul") .Values.consul.token.key)) -}}
{{- end -}}
{{- if .Values.etcd.password.existingSecret -}}
{{- $_ := set $added "etcd" (dict "password_file" (printf "%s/%s" (include "pickd.secretFolder" "etcd") .Values.etcd.password.key)) -}}
{{- end -}}
{{- range $source, $tls := dict "consul" .Values.consul.tls "etcd" .Values.etcd.tls -}}
{{- if $tls.existingSecret -}}
{{- $table := get $added $source | default dict -}}
{{- range $key, $file := dict "ca_file" $tls.caKey "cert_file" $tls.certKey "key_file" $tls.keyKey -}}
{{- if $file }}{{ $_ := set $table $key (printf "%s-tls/%s" (include "pickd.secretFolder" $source) $file) }}{{ end -}}
{{- end -}}
{{- $_ := set $added $source $table -}}
{{- end -}}
{{- end -}}
{{- range $table, $keys := $added -}}
{{- $own := get $config $table | default dict -}}
{{- range $key, $value := $keys -}}
{{- if hasKey $own $key -}}
{{- fail (printf "config.%s.%s: a value of the chart sets it already; leave one of them out" $table $key) -}}
{{- end -}}
{{- $_ := set $own $key $value -}}
{{- end -}}
{{- if or $keys (hasKey $config $table) (ne $table "api") }}{{ $_ := set $config $table $own }}{{ end -}}
{{- end -}}
{{- toJson $config -}}
{{- end -}}

{{/* The file. */}}
{{- define "pickd.toml" -}}
{{- $config := include "pickd.config" . | fromJson -}}
{{- $order := concat (list "api") .Values.sourceOrder (list "consul" "etcd" "file") (keys $config | sortAlpha) | uniq -}}
{{- range $name := $order -}}
{{- if hasKey $config $name }}{{ include "pickd.toml.table" (dict "path" $name "table" (get $config $name)) }}{{ end -}}
{{- end -}}
{{- end -}}

{{/* dict "path" "a.b" "table" {...}: [a.b], its keys, then the tables in it. */}}
{{- define "pickd.toml.table" -}}
{{- $path := .path -}}
{{- $keys := list -}}
{{- $tables := list -}}
{{- range $key, $value := .table -}}
{{- if or (kindIs "map" $value) (include "pickd.toml.isTables" $value) }}{{ $tables = append $tables $key -}}
{{- else if not (kindIs "invalid" $value) }}{{ $keys = append $keys $key }}{{ end -}}
{{- end -}}
{{- if or $keys (not $tables) }}[{{ $path }}]
{{ range $keys }}{{ include "pickd.toml.key" . }} = {{ include "pickd.toml.value" (get $.table .) }}
{{ end }}
{{ end -}}
{{- range $tables -}}
{{- $inner := printf "%s.%s" $path (include "pickd.toml.key" .) -}}
{{- $value := get $.table . -}}
{{- if kindIs "map" $value -}}
{{- include "pickd.toml.table" (dict "path" $inner "table" $value) -}}
{{- else -}}
{{- range $value -}}
[[{{ $inner }}]]
{{ range $key, $value := . }}{{ include "pickd.toml.key" $key }} = {{ include "pickd.toml.value" $value }}
{{ end }}
{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Whether it is a list of tables, and not empty. */}}
{{- define "pickd.toml.isTables" -}}
{{- if and (kindIs "slice" .) . }}{{ if kindIs "map" (first .) }}true{{ end }}{{ end -}}
{{- end -}}

{{- define "pickd.toml.key" -}}
{{- if regexMatch "^[A-Za-z0-9_-]+$" . }}{{ . }}{{ else }}{{ toRawJson . }}{{ end -}}
{{- end -}}

{{/* A value on one line. Texts of JSON are basic strings of TOML. Numbers come as floats, whatever was written. */}}
{{- define "pickd.toml.value" -}}
{{- if kindIs "string" . -}}
{{- toRawJson . -}}
{{- else if kindIs "bool" . -}}
{{- . -}}
{{- else if kindIs "slice" . -}}
[{{ range $index, $value := . }}{{ if $index }}, {{ end }}{{ include "pickd.toml.value" $value }}{{ end }}]
{{- else if kindIs "map" . -}}
{ {{- range $index, $key := keys . | sortAlpha }}{{ if $index }},{{ end }} {{ include "pickd.toml.key" $key }} = {{ include "pickd.toml.value" (get $ $key) }}{{ end }} }
{{- else if eq (float64 .) (floor .) -}}
{{- printf "%d" (int64 .) -}}
{{- else -}}
{{- printf "%v" . -}}
{{- end -}}
{{- end -}}
