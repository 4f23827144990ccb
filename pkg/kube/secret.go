package kube

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"

	"github.com/csi-s3/csi-s3/pkg/config"
)

// Sentinels of Client. An error that wraps none of them says nothing about the cluster's state.
var (
	// ErrNotInCluster: the process has no service account.
	ErrNotInCluster = errors.New("no service account")
	// ErrNotFound: no PersistentVolume of the driver has this ID, or it names no secret, or the secret is not there.
	ErrNotFound = errors.New("not found in the cluster")
	// ErrForbidden: the service account may not read it.
	ErrForbidden = errors.New("not allowed by the role of the service account")
)

const (
	// pageSize is how many PersistentVolumes one answer has.
	pageSize = 500
	// timeout bounds each request.
	timeout = 15 * time.Second
	// Of Events, the most requests.
	eventsPerSecond = 1
	eventBurst      = 20
)

// Client asks on behalf of one driver. It may be used by many goroutines.
type Client struct {
	driver     string
	core       *rest.RESTClient
	events     *rest.RESTClient // the same server, with a limit of its own
	parameters runtime.ParameterCodec
}

// InCluster returns a Client with the pod's service account, without asking anything yet. ErrNotInCluster outside of a
// pod, and in one without a token.
func InCluster(driver string) (*Client, error) {
	conf, err := rest.InClusterConfig()
	if errors.Is(err, rest.ErrNotInCluster) || errors.Is(err, fs.ErrNotExist) {
		// Not in a pod, or in one that its token is kept from.
		return nil, fmt.Errorf("%w: %w", ErrNotInCluster, err)
	}
	if err != nil {
		return nil, fmt.Errorf("service account: %w", err)
	}
	return New(driver, conf)
}

// New returns a Client for the given server, without asking anything yet.
func New(driver string, conf *rest.Config) (*Client, error) {
	// The ready-made clientset would bring the types of all APIs into the process: it doubled the binary.
	types := runtime.NewScheme()
	if err := corev1.AddToScheme(types); err != nil {
		return nil, fmt.Errorf("client of the API server: %w", err)
	}
	metav1.AddToGroupVersion(types, corev1.SchemeGroupVersion)
	conf = rest.CopyConfig(conf)
	conf.APIPath, conf.GroupVersion = "/api", &corev1.SchemeGroupVersion
	conf.NegotiatedSerializer = serializer.NewCodecFactory(types).WithoutConversion()
	conf.Timeout = timeout
	core, err := rest.RESTClientFor(conf)
	if err != nil {
		return nil, fmt.Errorf("client of the API server: %w", err)
	}
	conf.QPS, conf.Burst = eventsPerSecond, eventBurst
	events, err := rest.RESTClientFor(conf)
	if err != nil {
		return nil, fmt.Errorf("client of the API server: %w", err)
	}
	return &Client{driver: driver, core: core, events: events, parameters: runtime.NewParameterCodec(types)}, nil
}

// Secret returns the secret that the PersistentVolume with this ID is staged with, or else published with, as its
// attributes change it. The secret's content is in no error.
//
// ErrNotFound and ErrForbidden as they say, config.ErrSecret and config.ErrParameter for one that cannot be used.
func (c *Client) Secret(ctx context.Context, id config.VolumeID) (config.Secret, error) {
	pv, err := c.volume(ctx, id)
	if err != nil {
		return config.Secret{}, err
	}
	source, name := pv.Spec.CSI, pv.Name
	ref := source.NodeStageSecretRef
	if ref == nil {
		ref = source.NodePublishSecretRef
	}
	if ref == nil {
		return config.Secret{}, fmt.Errorf("PersistentVolume %s names neither a nodeStageSecretRef nor a nodePublishSecretRef: %w", name, ErrNotFound)
	}
	what := fmt.Sprintf("Secret %s/%s of PersistentVolume %s", ref.Namespace, ref.Name, name)
	var object corev1.Secret
	if err := c.core.Get().Namespace(ref.Namespace).Resource("secrets").Name(ref.Name).Do(ctx).Into(&object); err != nil {
		return config.Secret{}, fmt.Errorf("%s: %w", what, classify(err))
	}
	data := make(map[string]string, len(object.Data))
	for k, v := range object.Data {
		data[k] = string(v)
	}
	secret, err := config.ParseSecret(data)
	if err != nil {
		return config.Secret{}, fmt.Errorf("%s: %w", what, err)
	}
	attributes, err := config.ParseAttributes(source.VolumeAttributes)
	if err != nil {
		return config.Secret{}, fmt.Errorf("volumeAttributes of PersistentVolume %s: %w", name, err)
	}
	return attributes.Geesefs.Apply(secret), nil
}

// volume finds the PersistentVolume with the ID. The API server has no index of these, so all are looked at.
func (c *Client) volume(ctx context.Context, id config.VolumeID) (*corev1.PersistentVolume, error) {
	for token := ""; ; {
		var page corev1.PersistentVolumeList
		options := metav1.ListOptions{Limit: pageSize, Continue: token}
		if err := c.core.Get().Resource("persistentvolumes").VersionedParams(&options, c.parameters).Do(ctx).Into(&page); err != nil {
			return nil, fmt.Errorf("list PersistentVolumes: %w", classify(err))
		}
		for i := range page.Items {
			pv := &page.Items[i]
			if pv.Spec.CSI == nil || pv.Spec.CSI.Driver != c.driver {
				continue
			}
			// Compared as parsed: a handle of a static volume may end with a slash.
			if other, err := config.ParseVolumeID(pv.Spec.CSI.VolumeHandle); err == nil && other == id {
				return pv, nil
			}
		}
		if token = page.Continue; token == "" {
			return nil, fmt.Errorf("PersistentVolume with volume handle %s: %w", id, ErrNotFound)
		}
	}
}

// classify adds the sentinel of this package to an answer of the API server.
func classify(err error) error {
	switch {
	case apierrors.IsNotFound(err):
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
		return fmt.Errorf("%w: %w", ErrForbidden, err)
	}
	return err
}
