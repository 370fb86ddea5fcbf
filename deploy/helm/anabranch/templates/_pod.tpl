{{/* What every pod has: security, probes, volumes, where it may run. */}}

{{- define "anabranch.podSecurity" -}}
runAsNonRoot: true
{{- with .Values.podSecurity }}
{{- if not (kindIs "invalid" .runAsUser) }}
runAsUser: {{ .runAsUser | int64 }}
{{- end }}
{{- if not (kindIs "invalid" .runAsGroup) }}
runAsGroup: {{ .runAsGroup | int64 }}
{{- end }}
{{- if not (kindIs "invalid" .fsGroup) }}
fsGroup: {{ .fsGroup | int64 }}
fsGroupChangePolicy: OnRootMismatch
{{- end }}
{{- end }}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "anabranch.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* The health port is plain text, so the kubelet needs no certificate. Its names say different
     things: a pod that drains is alive and not ready. One that fails to start or to live has nothing
     to drain: it is killed soon, not after the grace of the longest generation.
     Takes startupSeconds, values. */}}
{{- define "anabranch.probes" -}}
{{- $kill := addf .values.preStopSeconds 30 | ceil | int64 -}}
startupProbe:
  grpc: {port: 50060, service: startup}
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: {{ divf .startupSeconds 5 | ceil | int64 }}
  terminationGracePeriodSeconds: {{ $kill }}
readinessProbe:
  grpc: {port: 50060, service: readiness}
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: 2
livenessProbe:
  grpc: {port: 50060, service: liveness}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
  terminationGracePeriodSeconds: {{ $kill }}
{{- end -}}

{{/* Callers learn that a pod goes while it still takes what is on its way. Takes root, values. */}}
{{- define "anabranch.lifecycle" -}}
{{- $seconds := include "anabranch.text" .values.preStopSeconds -}}
preStop:
  {{- if semverCompare ">=1.30-0" .root.Capabilities.KubeVersion.Version }}
  sleep: {seconds: {{ $seconds }}}
  {{- else }}
  exec: {command: [sleep, {{ $seconds | quote }}]}
  {{- end }}
{{- end -}}

{{- define "anabranch.ports" -}}
- {name: grpc, containerPort: {{ .facts.grpc }}, protocol: TCP}
- {name: http, containerPort: {{ .facts.http }}, protocol: TCP}
- {name: health, containerPort: 50060, protocol: TCP}
{{- end -}}

{{/* Secrets as files of one folder. Takes root, facts, secrets: a list of name, key, path. */}}
{{- define "anabranch.volumes" -}}
{{- $root := .root -}}
{{- $consul := $root.Values.consul -}}
{{- $secrets := .secrets -}}
{{- if and (ne $consul.mode "none") $consul.tokenSecret.name -}}
{{- $secrets = append $secrets (dict "name" $consul.tokenSecret.name "key" $consul.tokenSecret.key "path" "consul-token") -}}
{{- end -}}
{{- if and (ne .facts.suffix "auth") (or $root.Values.redis.existingSecret.name $root.Values.redis.url) -}}
{{- $secrets = append $secrets (dict "name" (include "anabranch.redisSecret" $root) "key" $root.Values.redis.existingSecret.key "path" "redis-url") -}}
{{- end -}}
{{- with $root.Values.encryption.existingSecret -}}
{{- if .name -}}
{{- $secrets = append $secrets (dict "name" .name "key" .key "path" "keychain.yaml") -}}
{{- end -}}
{{- end -}}
- name: tmp
  emptyDir: {}
- name: home
  emptyDir: {}
{{- if $secrets }}
- name: secrets
  projected:
    defaultMode: 0440
    sources:
      {{- range $secrets }}
      - secret: {name: {{ .name }}, items: [{key: {{ .key }}, path: {{ .path }}}]}
      {{- end }}
{{- end }}
{{- if ne $root.Values.tls.mode "none" }}
- name: tls
  secret:
    secretName: {{ include "anabranch.tlsSecret" (dict "root" $root "tls" .facts.tls) }}
    defaultMode: 0440
{{- end }}
{{- if and (ne $consul.mode "none") $consul.tls $consul.caSecret.name }}
- name: consul-ca
  secret:
    secretName: {{ $consul.caSecret.name }}
    defaultMode: 0440
    items: [{key: {{ $consul.caSecret.key }}, path: ca.crt}]
{{- end }}
{{- with .values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "anabranch.mounts" -}}
{{- $root := .root -}}
{{- $consul := $root.Values.consul -}}
- {name: tmp, mountPath: /tmp}
- {name: home, mountPath: /var/lib/anabranch}
{{- $redis := and (ne .facts.suffix "auth") (or $root.Values.redis.existingSecret.name $root.Values.redis.url) }}
{{- if or .secrets $redis $root.Values.encryption.existingSecret.name (and (ne $consul.mode "none") $consul.tokenSecret.name) }}
- {name: secrets, mountPath: /etc/anabranch/secrets, readOnly: true}
{{- end }}
{{- if ne $root.Values.tls.mode "none" }}
- {name: tls, mountPath: /etc/anabranch/tls, readOnly: true}
{{- end }}
{{- if and (ne $consul.mode "none") $consul.tls $consul.caSecret.name }}
- {name: consul-ca, mountPath: /etc/anabranch/consul-ca, readOnly: true}
{{- end }}
{{- with .values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Takes root, values, suffix, pool. */}}
{{- define "anabranch.placement" -}}
{{- $root := .root -}}
{{- with .values.nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity: {{ toYaml . | nindent 2 }}
{{- end }}
{{- $created := include "anabranch.priorityClass" (dict "root" $root "name" (ternary "engines" "serving" (eq .suffix "engine"))) }}
{{- with .values.priorityClassName | default (ternary $created "" $root.Values.priorityClasses.create) }}
priorityClassName: {{ . }}
{{- end }}
{{- if $root.Values.topologySpread.enabled }}
topologySpreadConstraints:
  {{- range $key, $when := dict "topology.kubernetes.io/zone" $root.Values.topologySpread.zones "kubernetes.io/hostname" $root.Values.topologySpread.hosts }}
  - topologyKey: {{ $key }}
    maxSkew: 1
    whenUnsatisfiable: {{ $when }}
    # A node that the pods may not use is none that lacks one, and the pods of another revision go:
    # either would hold a rollout up where pods must be even.
    nodeTaintsPolicy: Honor
    matchLabelKeys: [pod-template-hash]
    labelSelector:
      matchLabels: {{- include "anabranch.selector" (dict "root" $root "suffix" $.suffix "pool" $.pool) | nindent 8 }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* The head of each pod's spec. */}}
{{- define "anabranch.podHead" -}}
serviceAccountName: {{ include "anabranch.serviceAccountName" .root }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
terminationGracePeriodSeconds: {{ include "anabranch.grace" . }}
# Names are whole here. With the five of Kubernetes each would first be asked for in every search
# domain, every two seconds where DNS is the registry.
dnsConfig:
  options: [{name: ndots, value: "2"}]
securityContext: {{- include "anabranch.podSecurity" .root | nindent 2 }}
{{- end -}}
