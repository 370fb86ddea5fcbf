{{/* What a service is told: its variables. */}}

{{- define "anabranch.registry" -}}
{{- $consul := .Values.consul -}}
{{- $facts := include "anabranch.facts" . | fromYaml -}}
{{- if eq $consul.mode "none" -}}
{{- $entries := list (printf "anabranch-auth=%s:%v" (include "anabranch.host" (dict "root" . "suffix" "auth-headless")) $facts.auth.grpc) -}}
{{- if .Values.engines -}}
{{- $entries = append $entries (printf "anabranch-engine=%s:%v" (include "anabranch.host" (dict "root" . "suffix" "engine-headless")) $facts.engine.grpc) -}}
{{- end -}}
{{- if .Values.cloudProxy.enabled -}}
{{- $entries = append $entries (printf "anabranch-cloud=%s:%v" (include "anabranch.host" (dict "root" . "suffix" "cloud-proxy-headless")) $facts.cloudProxy.grpc) -}}
{{- end -}}
{{- /* How many routers share quotas where there is no Redis. */ -}}
{{- $entries = append $entries (printf "anabranch-router=%s:%v" (include "anabranch.host" (dict "root" . "suffix" "router-headless")) $facts.router.grpc) -}}
{{- printf "dns:%s" (join ";" $entries) -}}
{{- else -}}
{{- $host := ternary "$(HOST_IP)" $consul.address (empty $consul.address) -}}
{{- $query := list -}}
{{- with $consul.datacenter | default (ternary $consul.global.datacenter "" (eq $consul.mode "hashicorp")) -}}
{{- $query = append $query (printf "dc=%s" .) -}}
{{- end -}}
{{- with $consul.namespace -}}
{{- $query = append $query (printf "ns=%s" .) -}}
{{- end -}}
{{- with $consul.partition -}}
{{- $query = append $query (printf "partition=%s" .) -}}
{{- end -}}
{{- if $consul.tls -}}
{{- $query = append $query "tls=true" -}}
{{- if $consul.caSecret.name -}}
{{- $query = append $query "ca=/etc/anabranch/consul-ca/ca.crt" -}}
{{- end -}}
{{- end -}}
{{- printf "consul://%s:%s" $host (include "anabranch.text" $consul.port) -}}
{{- if $query -}}?{{ join "&" $query }}{{- end -}}
{{- end -}}
{{- end -}}

{{/* Seconds for which a pod may finish what it began. Takes root and values. */}}
{{- define "anabranch.drain" -}}
{{- if kindIs "invalid" .values.drainTimeout -}}
{{- include "anabranch.text" .root.Values.longestGeneration -}}
{{- else -}}
{{- include "anabranch.text" .values.drainTimeout -}}
{{- end -}}
{{- end -}}

{{/* Seconds until a pod is killed: what it waits before draining, the drain, and time to end. */}}
{{- define "anabranch.grace" -}}
{{- if kindIs "invalid" .values.terminationGracePeriodSeconds -}}
{{- addf .values.preStopSeconds (include "anabranch.drain" . | float64) 20 | ceil | int64 -}}
{{- else -}}
{{- include "anabranch.text" .values.terminationGracePeriodSeconds -}}
{{- end -}}
{{- end -}}

{{/* The variables of a service, each name once: what every service has, then what its template
     gives in `env`, then `values.settings`, then `values.extraEnv`.
     Takes root, facts, values, env (names without prefix). */}}
{{- define "anabranch.env" -}}
{{- $root := .root -}}
{{- $v := .values -}}
{{- $consul := $root.Values.consul -}}
{{- $env := dict
      "LISTEN" (printf "0.0.0.0:%v" .facts.grpc)
      "HTTP_LISTEN" (printf "0.0.0.0:%v" .facts.http)
      "HEALTH_LISTEN" "0.0.0.0:50060"
      "ADVERTISE" (printf "$(POD_IP):%v" .facts.grpc)
      "SERVICE_ID" "$(POD_NAME)"
      "REGISTRY" (include "anabranch.registry" $root)
      "LOG_LEVEL" $root.Values.logLevel
      "DRAIN_TIMEOUT" (include "anabranch.drain" .) -}}
{{- if ne .facts.suffix "auth" -}}
{{- $_ := set $env "AUTH_TARGET" (printf "%s:50054" (include "anabranch.host" (dict "root" $root "suffix" "auth"))) -}}
{{- end -}}
{{- with $root.Values.otlp.endpoint -}}
{{- $_ := set $env "OTLP_ENDPOINT" . -}}
{{- $_ := set $env "AUDIT_OTLP" $root.Values.otlp.audit -}}
{{- end -}}
{{- if ne $root.Values.tls.mode "none" -}}
{{- $_ := set $env "TLS_CERT_FILE" "/etc/anabranch/tls/tls.crt" -}}
{{- $_ := set $env "TLS_KEY_FILE" "/etc/anabranch/tls/tls.key" -}}
{{- $_ := set $env "TLS_CA_FILE" "/etc/anabranch/tls/ca.crt" -}}
{{- $called := has .facts.suffix (list "router" "auth") -}}
{{- $asked := and $root.Values.tls.mutual (or (not $called) $root.Values.tls.callersShowCertificates) -}}
{{- $_ := set $env "TLS_CLIENT_AUTH" (ternary "required" "none" $asked) -}}
{{- end -}}
{{- if and (ne $consul.mode "none") $consul.tokenSecret.name -}}
{{- $_ := set $env "REGISTRY_TOKEN_FILE" "/etc/anabranch/secrets/consul-token" -}}
{{- end -}}
{{- if and (ne .facts.suffix "auth") (or $root.Values.redis.existingSecret.name $root.Values.redis.url) -}}
{{- $_ := set $env "REDIS_URL_FILE" "/etc/anabranch/secrets/redis-url" -}}
{{- end -}}
{{- if $root.Values.encryption.existingSecret.name -}}
{{- $_ := set $env "ENCRYPTION_KEYS_FILE" "/etc/anabranch/secrets/keychain.yaml" -}}
{{- end -}}
{{- $env = merge (deepCopy $v.settings) .env $env -}}
- name: POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
{{- if ne $consul.mode "none" }}
- name: HOST_IP
  valueFrom: {fieldRef: {fieldPath: status.hostIP}}
{{- end }}
{{- $prefix := .facts.prefix }}
{{- range $name, $value := $env }}
- name: {{ $prefix }}{{ $name }}
  value: {{ include "anabranch.text" $value | quote }}
{{- end }}
{{- range $v.extraEnv }}
{{- if hasKey $env (trimPrefix $prefix .name) }}
{{- fail (printf "%s: extraEnv names %s, which the chart sets: use settings for it" $prefix .name) }}
{{- end }}
- {{ toJson . }}
{{- end }}
{{- end -}}
