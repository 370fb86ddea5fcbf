{{/* Names and labels. */}}

{{- define "anabranch.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* Short enough for every suffix of this chart. */}}
{{- define "anabranch.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What is the same of every service: the prefix of its variables, its ports, its name in the
     registry and in certificates, and the end of its objects' names. */}}
{{- define "anabranch.facts" -}}
router: {prefix: ANABRANCH_ROUTER_, grpc: 50051, http: 9101, identity: anabranch-router, suffix: router, tls: router}
cloudProxy: {prefix: ANABRANCH_CLOUD_, grpc: 50053, http: 9103, identity: anabranch-cloud, suffix: cloud-proxy, tls: cloudProxy}
auth: {prefix: ANABRANCH_AUTH_, grpc: 50054, http: 9104, identity: anabranch-auth, suffix: auth, tls: auth}
engine: {prefix: ANABRANCH_ENGINE_, grpc: 50052, http: 9102, identity: anabranch-engine, suffix: engine, tls: engine}
{{- end -}}

{{/* The labels that select a service's pods. Takes root and suffix, and pool for one pool. */}}
{{- define "anabranch.selector" -}}
app.kubernetes.io/name: {{ include "anabranch.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .suffix }}
{{- with .pool }}
anabranch.io/pool: {{ . }}
{{- end }}
{{- end -}}

{{/* The labels of an object. Takes root, and suffix and pool where it belongs to a service. */}}
{{- define "anabranch.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: anabranch
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
{{- if .suffix }}
{{ include "anabranch.selector" . }}
{{- else }}
app.kubernetes.io/name: {{ include "anabranch.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The labels of a pod: none that changes with the chart alone, or each upgrade would load every
     model anew. */}}
{{- define "anabranch.podLabels" -}}
{{ include "anabranch.selector" . }}
app.kubernetes.io/part-of: anabranch
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Takes root and image: a digest goes before a tag. Without a tag of its own an image has the
     release's, so that an upgrade brings every image along; `variant` tells those of one version apart. */}}
{{- define "anabranch.image" -}}
{{- $registry := .root.Values.image.registry | trimSuffix "/" -}}
{{- $repository := ternary .image.repository (printf "%s/%s" $registry .image.repository) (empty $registry) -}}
{{- if .image.digest -}}
{{- printf "%s@%s" $repository .image.digest -}}
{{- else -}}
{{- $tag := .root.Values.image.tag | default .root.Chart.AppVersion -}}
{{- with .image.variant -}}{{- $tag = printf "%s-%s" $tag . -}}{{- end -}}
{{- printf "%s:%s" $repository (.image.tag | default $tag) -}}
{{- end -}}
{{- end -}}

{{/* host of a Service in this namespace. Takes root and suffix. */}}
{{- define "anabranch.host" -}}
{{- printf "%s-%s.%s.svc.%s" (include "anabranch.fullname" .root) .suffix .root.Release.Namespace .root.Values.clusterDomain -}}
{{- end -}}

{{- define "anabranch.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "anabranch.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{/* Priority classes are the cluster's, so their names say whose they are. Takes root and name. */}}
{{- define "anabranch.priorityClass" -}}
{{- printf "%s-%s-%s" .root.Release.Namespace (include "anabranch.fullname" .root) .name -}}
{{- end -}}

{{- define "anabranch.identitiesSecret" -}}
{{- .Values.identities.existingSecret | default (printf "%s-identities" (include "anabranch.fullname" .)) -}}
{{- end -}}

{{- define "anabranch.keyEncryptionSecret" -}}
{{- .Values.auth.keyEncryption.existingSecret | default (printf "%s-auth-keys" (include "anabranch.fullname" .)) -}}
{{- end -}}

{{- define "anabranch.redisSecret" -}}
{{- .Values.redis.existingSecret.name | default (printf "%s-redis" (include "anabranch.fullname" .)) -}}
{{- end -}}

{{/* The Secret with a service's certificate. Takes root and tls: router, auth, …, client. */}}
{{- define "anabranch.tlsSecret" -}}
{{- if eq .root.Values.tls.mode "existing" -}}
{{- index .root.Values.tls.existingSecrets .tls -}}
{{- else -}}
{{- printf "%s-%s-tls" (include "anabranch.fullname" .root) (.tls | kebabcase) -}}
{{- end -}}
{{- end -}}

{{/* Whether a service runs more than one replica for sure; "true" or "". Takes root and component. */}}
{{- define "anabranch.scales" -}}
{{- $v := index .root.Values .component -}}
{{- if and (eq .component "auth") (eq .root.Values.auth.database.type "sqlite") -}}
{{- else if $v.autoscaling.enabled -}}
true
{{- end -}}
{{- end -}}

{{/* One pool with everything that it does not say itself, as JSON. Takes root and pool. */}}
{{- define "anabranch.pool" -}}
{{- mergeOverwrite (deepCopy .root.Values.engineDefaults) (deepCopy .pool) | toJson -}}
{{- end -}}

{{/* Text of a value in an environment: numbers as they were written, never as 1e+06. */}}
{{- define "anabranch.text" -}}
{{- if or (kindIs "float64" .) (kindIs "int64" .) (kindIs "int" .) -}}
{{- toJson . -}}
{{- else -}}
{{- toString . -}}
{{- end -}}
{{- end -}}
