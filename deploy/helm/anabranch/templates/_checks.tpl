{{/* What a schema cannot say: values that do not fit together. Every fault is named at once. */}}
{{- define "anabranch.checks" -}}
{{- $faults := list -}}
{{- $consul := .Values.consul -}}
{{- if ne (eq $consul.mode "hashicorp") $consul.enabled -}}
{{- $faults = append $faults "consul.enabled must be true with consul.mode=hashicorp, and false otherwise" -}}
{{- end -}}
{{- if and (eq $consul.mode "hashicorp") (not $consul.client.enabled) -}}
{{- $faults = append $faults "consul.client.enabled must be true with consul.mode=hashicorp: services register with the agent of their node" -}}
{{- end -}}
{{- if and (eq $consul.mode "hashicorp") $consul.address -}}
{{- $faults = append $faults "consul.address is for consul.mode=existing" -}}
{{- end -}}
{{- if and .Values.router.policyFrom.consulKey (eq $consul.mode "none") -}}
{{- $faults = append $faults "router.policyFrom.consulKey needs a Consul: consul.mode is none" -}}
{{- end -}}
{{- $policies := 0 -}}
{{- range list .Values.policy .Values.router.policyFrom.configMap .Values.router.policyFrom.consulKey -}}
{{- if . -}}{{- $policies = add1 $policies -}}{{- end -}}
{{- end -}}
{{- if gt (int $policies) 1 -}}
{{- $faults = append $faults "the policy is in more than one place: keep one of policy, router.policyFrom.configMap and router.policyFrom.consulKey" -}}
{{- end -}}
{{- if and .Values.redis.url .Values.redis.existingSecret.name -}}
{{- $faults = append $faults "redis.url and redis.existingSecret are both set: keep one" -}}
{{- end -}}
{{- if .Values.networkPolicy.enabled -}}
{{- range $name, $url := dict "redis" .Values.redis.url "otlp" .Values.otlp.endpoint -}}
{{- if $url -}}
{{- $parts := urlParse $url -}}
{{- $usual := get (dict "http" "80" "https" "443") $parts.scheme | default "6379" -}}
{{- $port := regexFind ":[0-9]+$" $parts.host | trimPrefix ":" | default $usual -}}
{{- $open := (index $.Values.networkPolicy $name).port | int64 | toString -}}
{{- if ne $port $open -}}
{{- $faults = append $faults (printf "networkPolicy.%s.port is %s, and the address of %s has port %s: nothing would reach it" $name $open $name $port) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and (eq .Values.auth.database.type "postgresql") (not .Values.auth.database.existingSecret.name) -}}
{{- $faults = append $faults "auth.database.existingSecret.name is required with auth.database.type=postgresql: a Secret with the URL" -}}
{{- end -}}
{{- if eq .Values.tls.mode "existing" -}}
{{- range $name := list "router" "auth" -}}
{{- if not (index $.Values.tls.existingSecrets $name) -}}
{{- $faults = append $faults (printf "tls.existingSecrets.%s is required with tls.mode=existing" $name) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.engines (not .Values.tls.existingSecrets.engine) -}}
{{- $faults = append $faults "tls.existingSecrets.engine is required with tls.mode=existing and engines" -}}
{{- end -}}
{{- if and .Values.cloudProxy.enabled (not .Values.tls.existingSecrets.cloudProxy) -}}
{{- $faults = append $faults "tls.existingSecrets.cloudProxy is required with tls.mode=existing and cloudProxy.enabled" -}}
{{- end -}}
{{- if and .Values.tests.enabled (not .Values.tls.existingSecrets.client) -}}
{{- $faults = append $faults "tls.existingSecrets.client is required with tls.mode=existing and tests.enabled" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.cloudProxy.enabled (not .Values.cloudProxy.models) -}}
{{- $faults = append $faults "cloudProxy.models is empty: name what the proxy offers, or set cloudProxy.enabled=false" -}}
{{- end -}}
{{- if and .Values.cloudProxy.enabled (not .Values.cloudProxy.providerKeys.existingSecret) -}}
{{- $faults = append $faults "cloudProxy.providerKeys.existingSecret is required with cloudProxy.enabled: a Secret with a file of keys for each provider" -}}
{{- end -}}
{{- if and .Values.externalSecrets.enabled (not .Values.externalSecrets.secretStoreRef.name) -}}
{{- $faults = append $faults "externalSecrets.secretStoreRef.name is required with externalSecrets.enabled" -}}
{{- end -}}
{{- if and .Values.monitoring.podMonitor.enabled .Values.monitoring.serviceMonitor.enabled -}}
{{- $faults = append $faults "monitoring.podMonitor and monitoring.serviceMonitor are both enabled: everything would be scraped twice" -}}
{{- end -}}
{{- if and .Values.router.grpcRoute.enabled (not .Values.router.grpcRoute.parentRefs) -}}
{{- $faults = append $faults "router.grpcRoute.parentRefs is empty: name a gateway" -}}
{{- end -}}
{{- $services := dict "router" .Values.router "auth" .Values.auth -}}
{{- if .Values.cloudProxy.enabled -}}{{- $_ := set $services "cloudProxy" .Values.cloudProxy -}}{{- end -}}
{{- range $name, $v := $services -}}
{{- if gt (float64 $v.autoscaling.minReplicas) (float64 $v.autoscaling.maxReplicas) -}}
{{- $faults = append $faults (printf "%s.autoscaling.minReplicas exceeds maxReplicas" $name) -}}
{{- end -}}
{{- end -}}
{{- $seen := dict -}}
{{- range $index, $given := .Values.engines -}}
{{- $pool := include "anabranch.pool" (dict "root" $ "pool" $given) | fromJson -}}
{{- $at := printf "engines[%d] (%s)" $index $pool.name -}}
{{- if hasKey $seen $pool.name -}}
{{- $faults = append $faults (printf "%s: the name is taken" $at) -}}
{{- end -}}
{{- $_ := set $seen $pool.name true -}}
{{- $_ := set $services $at $pool -}}
{{- if not (kindIs "invalid" $pool.tensorParallel) -}}
{{- $wanted := mul (int $pool.tensorParallel) (int $pool.pipelineParallel) (int $pool.dataParallel) -}}
{{- if and (gt (int $pool.gpus) 0) (ne $wanted (int64 $pool.gpus)) -}}
{{- $faults = append $faults (printf "%s: tensorParallel × pipelineParallel × dataParallel is %d, and gpus is %d" $at $wanted (int $pool.gpus)) -}}
{{- end -}}
{{- else if and (gt (int $pool.gpus) 0) (ne (mod (int $pool.gpus) (mul (int $pool.pipelineParallel) (int $pool.dataParallel))) 0) -}}
{{- $faults = append $faults (printf "%s: gpus is no multiple of pipelineParallel × dataParallel" $at) -}}
{{- end -}}
{{- if and $pool.cache.enabled (not $pool.cache.existingClaim) (not (has "ReadWriteMany" $pool.cache.accessModes)) -}}
{{- $most := ternary $pool.keda.maxReplicas $pool.replicas $pool.keda.enabled -}}
{{- $surges := not (has (toString $pool.rollingUpdate.maxSurge) (list "0" "0%")) -}}
{{- if or $surges (gt (int $most) 1) -}}
{{- $faults = append $faults (printf "%s: cache.accessModes has no ReadWriteMany, so a pod on another node waits for ever: keep one replica with rollingUpdate {maxSurge: 0, maxUnavailable: 1}, or name a claim of your own in cache.existingClaim when all pods are on one node" $at) -}}
{{- end -}}
{{- end -}}
{{- if and $pool.keda.enabled (not $.Values.keda.prometheusAddress) -}}
{{- $faults = append $faults (printf "%s: keda.enabled needs keda.prometheusAddress" $at) -}}
{{- end -}}
{{- if gt (int $pool.keda.minReplicas) (int $pool.keda.maxReplicas) -}}
{{- $faults = append $faults (printf "%s: keda.minReplicas exceeds keda.maxReplicas" $at) -}}
{{- end -}}
{{- end -}}
{{- range $name, $v := $services -}}
{{- $given := $v.terminationGracePeriodSeconds -}}
{{- if not (kindIs "invalid" $given) -}}
{{- $least := addf $v.preStopSeconds (include "anabranch.drain" (dict "root" $ "values" $v) | float64) -}}
{{- if le (float64 $given) $least -}}
{{- $faults = append $faults (printf "%s: terminationGracePeriodSeconds must be more than preStopSeconds and drainTimeout together (%v)" $name $least) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if $faults -}}
{{- fail (printf "these values do not fit together:\n  - %s" (join "\n  - " $faults)) -}}
{{- end -}}
{{- end -}}
