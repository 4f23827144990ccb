{{- define "csi-s3.labels" -}}
app.kubernetes.io/name: csi-s3
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "csi-s3.selector" -}}
app.kubernetes.io/name: csi-s3
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "csi-s3.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "csi-s3.secretName" -}}
{{ .Values.secret.existingSecret | default .Values.secret.name | default (printf "%s-secret" .Values.storageClass.name) }}
{{- end }}

{{/* All classes as a JSON object with the key classes: storageClass first, then storageClasses, each completed by storageClass. */}}
{{- define "csi-s3.classes" -}}
{{- $classes := list -}}
{{- if .Values.storageClass.create -}}
{{- $classes = append $classes .Values.storageClass -}}
{{- end -}}
{{- range $own := .Values.storageClasses -}}
{{- $class := omit $.Values.storageClass "create" "name" "default" "annotations" -}}
{{- if or $own.bucket $own.singleBucket -}}
{{- $class = omit $class "bucket" "singleBucket" -}}
{{- end -}}
{{- range $key, $value := $own -}}
{{- $_ := set $class $key $value -}}
{{- end -}}
{{- $classes = append $classes $class -}}
{{- end -}}
{{- dict "classes" $classes | toJson -}}
{{- end }}

{{/* The bucket of all volumes of a class, under either of its names; empty: one bucket for each volume. */}}
{{- define "csi-s3.bucket" -}}
{{- if and .bucket .singleBucket (ne .bucket .singleBucket) -}}
{{- fail "storageClass.bucket and storageClass.singleBucket name different buckets: they are one setting, give one of them" -}}
{{- end -}}
{{ .bucket | default .singleBucket }}
{{- end }}

{{/* The secrets of the release's namespace that the driver may read, as a JSON list. */}}
{{- define "csi-s3.secretNames" -}}
{{- $names := prepend .Values.rbac.secretNames (include "csi-s3.secretName" .) -}}
{{- range (include "csi-s3.classes" . | fromJson).classes -}}
{{- if and .secretName (not (contains "$" .secretName)) (eq (.secretNamespace | default $.Release.Namespace) $.Release.Namespace) -}}
{{- $names = append $names .secretName -}}
{{- end -}}
{{- end -}}
{{- $names | uniq | toJson -}}
{{- end }}

{{- define "csi-s3.kubelet" -}}
{{ .Values.kubeletDir | default .Values.kubeletPath | trimSuffix "/" }}
{{- end }}

{{- define "csi-s3.pullSecrets" -}}
{{- with concat (.Values.global.imagePullSecrets | default list) .Values.imagePullSecrets | uniq -}}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end }}

{{- define "csi-s3.endpoint" -}}
{{- if .Values.secret.endpoint -}}
{{ .Values.secret.endpoint }}
{{- else if .Values.secret.cloudProvider -}}
{{- $region := required "secret.region is needed to derive the endpoint of secret.cloudProvider: add --set secret.region=REGION" .Values.secret.region -}}
{{- if eq .Values.secret.cloudProvider "aws" -}}
https://s3.{{ $region }}.amazonaws.com{{ if hasPrefix "cn-" $region }}.cn{{ end }}
{{- else -}}
https://oss-{{ $region }}.aliyuncs.com
{{- end -}}
{{- else -}}
{{- fail "secret.endpoint is missing: add --set secret.endpoint=https://HOST (or secret.create=false with secret.name of a secret that exists)" -}}
{{- end -}}
{{- end }}

{{/* Tolerations of the controller, of either form of .Values.tolerations. */}}
{{- define "csi-s3.controllerTolerations" -}}
{{- if kindIs "slice" .Values.tolerations -}}
{{- toYaml .Values.tolerations -}}
{{- else -}}
{{- toYaml (.Values.tolerations.controller | default list) -}}
{{- end -}}
{{- end }}

{{- define "csi-s3.nodeTolerations" -}}
{{- $all := true -}}
{{- $own := .Values.daemonsetTolerations -}}
{{- if kindIs "map" .Values.tolerations -}}
{{- $all = .Values.tolerations.all -}}
{{- $own = concat (.Values.tolerations.node | default list) $own -}}
{{- else if $own -}}
{{- $all = false -}}
{{- end -}}
{{- if $all -}}
- operator: Exists
{{- else -}}
{{- toYaml ($own | default list) -}}
{{- end -}}
{{- end }}

{{/* Of the containers that need nothing of the node. */}}
{{- define "csi-s3.restricted" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
  seccompProfile: {type: RuntimeDefault}
{{- end }}
