{{- define "rpop.fullname" -}}
{{- if contains "rpop" .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-rpop" (.Release.Name | trunc 35 | trimSuffix "-") -}}
{{- end -}}
{{- end -}}

{{/* The processes: a Deployment, a ServiceAccount and so on for each. */}}
{{- define "rpop.components" -}}
{{- if eq .Values.mode "combined" }}combined{{ else }}controller worker{{ end -}}
{{- end -}}

{{/* The component that does the work of "controller" or "worker". */}}
{{- define "rpop.account" -}}
{{- $root := index . 0 -}}
{{- printf "%s-%s" (include "rpop.fullname" $root) (eq $root.Values.mode "combined" | ternary "combined" (index . 1)) -}}
{{- end -}}

{{/* The name by which the API server knows it. */}}
{{- define "rpop.user" -}}
{{- $root := index . 0 -}}
{{- printf "system:serviceaccount:%s:%s" $root.Release.Namespace (include "rpop.account" .) -}}
{{- end -}}

{{- define "rpop.selector" -}}
app.kubernetes.io/name: rpop
{{- if ne (include "rpop.fullname" (index . 0)) "rpop" }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
{{- end }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "rpop.labels" -}}
app.kubernetes.io/part-of: rpop
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}
