package kube_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/csi-s3/csi-s3/pkg/config"
	"github.com/csi-s3/csi-s3/pkg/kube"
)

// api answers as an API server does that has some PersistentVolumes, two on a page, and one secret.
type api struct {
	t       *testing.T
	volumes []corev1.PersistentVolume
	refuse  string         // part of the path that is answered with status
	status  metav1.Status  // of the refusal
	secret  *corev1.Secret // nil: not found
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case a.refuse != "" && strings.Contains(r.URL.Path, a.refuse):
		a.write(w, int(a.status.Code), a.status)
	case r.URL.Path == "/api/v1/persistentvolumes":
		const perPage = 2
		var page corev1.PersistentVolumeList
		at := 0
		if token := r.URL.Query().Get("continue"); token != "" {
			if _, err := fmt.Sscan(token, &at); err != nil {
				a.t.Error(err)
			}
		}
		page.Items = a.volumes[at:min(at+perPage, len(a.volumes))]
		if at+perPage < len(a.volumes) {
			page.Continue = fmt.Sprint(at + perPage)
		}
		a.write(w, http.StatusOK, page)
	case a.secret != nil && r.URL.Path == "/api/v1/namespaces/ns/secrets/"+a.secret.Name:
		a.write(w, http.StatusOK, a.secret)
	default:
		a.write(w, http.StatusNotFound, metav1.Status{Status: metav1.StatusFailure, Reason: metav1.StatusReasonNotFound, Code: http.StatusNotFound})
	}
}

func (a *api) write(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	if err := json.NewEncoder(w).Encode(body); err != nil {
		a.t.Error(err)
	}
}

func pv(name, driver, handle string, ref *corev1.SecretReference) corev1.PersistentVolume {
	v := corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name}}
	v.Spec.CSI = &corev1.CSIPersistentVolumeSource{Driver: driver, VolumeHandle: handle, NodeStageSecretRef: ref}
	return v
}

// The secret is that of the volume's own PersistentVolume. What cannot be found out is an error that says what is
// missing, and never another volume's secret.
func TestSecret(t *testing.T) {
	const driver = "csi-s3.dev"
	ref := func(name string) *corev1.SecretReference {
		return &corev1.SecretReference{Namespace: "ns", Name: name}
	}
	good := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "mine"}, Data: map[string][]byte{
		"endpoint": []byte("https://s3.example\n"), "accessKeyID": []byte("an-id"), "secretAccessKey": []byte("a-key"),
	}}
	others := []corev1.PersistentVolume{
		{ObjectMeta: metav1.ObjectMeta{Name: "a disk"}},
		pv("foreign", "other.driver", "bucket/a", ref("foreign")),
		pv("sibling", driver, "bucket/ab", ref("sibling")),
		pv("broken", driver, "..", ref("broken")),
	}
	mine := func(change func(*corev1.CSIPersistentVolumeSource)) []corev1.PersistentVolume {
		v := pv("mine", driver, "bucket/a/", ref("mine"))
		if change != nil {
			change(v.Spec.CSI)
		}
		return append(others[:len(others):len(others)], v)
	}
	refusal := func(code int32, reason metav1.StatusReason) metav1.Status {
		return metav1.Status{Status: metav1.StatusFailure, Code: code, Reason: reason, Message: "said no"}
	}
	for _, test := range []struct {
		name string
		api  api
		is   error
		text string // in the error
	}{
		{"found", api{volumes: mine(nil), secret: good}, nil, ""},
		{"publish secret", api{volumes: mine(func(s *corev1.CSIPersistentVolumeSource) {
			s.NodePublishSecretRef, s.NodeStageSecretRef = s.NodeStageSecretRef, nil
		}), secret: good}, nil, ""},
		{"attributes", api{volumes: mine(func(s *corev1.CSIPersistentVolumeSource) {
			s.VolumeAttributes = map[string]string{"options": "--region r1"}
		}), secret: good}, nil, ""},
		{"no volume", api{volumes: others, secret: good}, kube.ErrNotFound, "bucket/a"},
		{"no reference", api{volumes: mine(func(s *corev1.CSIPersistentVolumeSource) { s.NodeStageSecretRef = nil }), secret: good}, kube.ErrNotFound, "nodeStageSecretRef"},
		{"no secret", api{volumes: mine(nil)}, kube.ErrNotFound, "ns/mine"},
		{"secret of others", api{volumes: mine(nil), secret: good, refuse: "secrets", status: refusal(403, metav1.StatusReasonForbidden)}, kube.ErrForbidden, "ns/mine"},
		{"no rights", api{volumes: mine(nil), secret: good, refuse: "persistentvolumes", status: refusal(403, metav1.StatusReasonForbidden)}, kube.ErrForbidden, "PersistentVolumes"},
		{"no answer", api{volumes: mine(nil), secret: good, refuse: "persistentvolumes", status: refusal(500, metav1.StatusReasonInternalError)}, nil, "list PersistentVolumes"},
		{"empty secret", api{volumes: mine(nil), secret: &corev1.Secret{ObjectMeta: good.ObjectMeta}}, config.ErrSecret, "endpoint"},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.api.t = t
			srv := httptest.NewServer(&test.api)
			defer srv.Close()
			c, err := kube.New(driver, &rest.Config{Host: srv.URL})
			if err != nil {
				t.Fatal(err)
			}
			got, err := c.Secret(t.Context(), config.VolumeID{Bucket: "bucket", Prefix: "a/"})
			if test.is == nil && test.text == "" {
				want := config.Secret{Endpoint: "https://s3.example", AccessKeyID: "an-id", SecretAccessKey: "a-key"}
				if test.name == "attributes" {
					want.Region = "r1"
				}
				if err != nil || got != want {
					t.Errorf("%v, %v", got, err)
				}
				return
			}
			if err == nil || got != (config.Secret{}) || !strings.Contains(err.Error(), test.text) {
				t.Fatalf("%v, %v", got, err)
			}
			for _, sentinel := range []error{kube.ErrNotFound, kube.ErrForbidden, config.ErrSecret} {
				if is, want := errors.Is(err, sentinel), errors.Is(test.is, sentinel); is != want {
					t.Errorf("%v: is %v: %v", err, sentinel, is)
				}
			}
			if strings.Contains(err.Error(), "an-id") || strings.Contains(err.Error(), "a-key") {
				t.Errorf("the secret is in the error %v", err)
			}
		})
	}
}

// Outside of a pod there is no service account, and a pod may be kept from its token.
func TestInCluster(t *testing.T) {
	for _, host := range []string{"", "127.0.0.1"} {
		t.Setenv("KUBERNETES_SERVICE_HOST", host)
		t.Setenv("KUBERNETES_SERVICE_PORT", "443")
		if _, err := kube.InCluster("csi-s3.dev"); !errors.Is(err, kube.ErrNotInCluster) {
			t.Errorf("host %q: %v", host, err)
		}
	}
}
