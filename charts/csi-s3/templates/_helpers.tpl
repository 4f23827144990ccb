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
{{ .Values.secret.name | default (printf "%s-secret" .Values.storageClass.name) }}
{{- end }}

{{/* The bucket of all volumes, under either of its names; empty: one bucket for each volume. */}}
{{- define "csi-s3.bucket" -}}
{{- if and .Values.storageClass.bucket .Values.storageClass.singleBucket (ne .Values.storageClass.bucket .Values.storageClass.singleBucket) -}}
{{- fail "storageClass.bucket and storageClass.singleBucket name different buckets: they are one setting, give one of them" -}}
{{- end -}}
{{ .Values.storageClass.bucket | default .Values.storageClass.singleBucket }}
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
{{- toYaml $own -}}
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
