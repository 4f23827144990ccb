package s3sdk

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
)

const (
	defaultRegion   = "us-east-1"
	defaultAttempts = 4
)

// Credentials sign requests. SessionToken is empty for long-lived keys.
type Credentials struct {
	AccessKeyID     Secret
	SecretAccessKey Secret
	SessionToken    Secret
}

// Config says which server to speak to and how. Endpoint and the two keys are required.
type Config struct {
	// Endpoint is the server's URL: http or https, host, optional port and path.
	Endpoint string
	// Region is signed into every request; empty means us-east-1.
	Region string
	// VirtualHost puts the bucket into the host name; false means into the path, which every server understands.
	VirtualHost bool
	// CABundle holds PEM certificates to trust beside the system's.
	CABundle []byte
	// Insecure accepts any certificate of the server.
	Insecure    bool
	Credentials Credentials
	// Attempts is how often a request is tried before its transient error is returned; 0 means 4, 1 means no retry.
	Attempts int
	// Transports shares connections between clients of one endpoint; nil means connections of its own.
	Transports *Transports
}

// Validate names the first wrong field and says what it must be.
func (c Config) Validate() error {
	_, err := c.url()
	if err != nil {
		return err
	}
	if c.Credentials.AccessKeyID == "" {
		return errors.New("accessKeyID is empty: give the access key of the S3 account")
	}
	if c.Credentials.SecretAccessKey == "" {
		return errors.New("secretAccessKey is empty: give the secret key that belongs to the access key")
	}
	for name, s := range map[string]Secret{"accessKeyID": c.Credentials.AccessKeyID, "secretAccessKey": c.Credentials.SecretAccessKey, "sessionToken": c.Credentials.SessionToken} {
		if strings.ContainsFunc(string(s), func(r rune) bool { return r <= ' ' || r > '~' }) {
			return fmt.Errorf("%s holds a space, line end or non-ASCII character: remove it", name)
		}
	}
	if strings.ContainsFunc(c.Region, func(r rune) bool { return r <= ' ' || r > '~' || r == '/' }) {
		return fmt.Errorf("region %q is not a region name such as us-east-1", c.Region)
	}
	if c.Attempts < 0 {
		return fmt.Errorf("attempts is %d: it must be positive, or 0 for the default of %d", c.Attempts, defaultAttempts)
	}
	if len(c.CABundle) > 0 && !x509.NewCertPool().AppendCertsFromPEM(c.CABundle) {
		return errors.New("caBundle holds no PEM certificate: it must have a BEGIN CERTIFICATE block")
	}
	return nil
}

func (c Config) url() (*url.URL, error) {
	if c.Endpoint == "" {
		return nil, errors.New("endpoint is empty: give the URL of the S3 server, such as https://minio.example:9000")
	}
	// The text of a parse error and the URL itself may hold a password.
	u, err := url.Parse(c.Endpoint)
	switch {
	case err != nil:
		return nil, errors.New("endpoint is not a URL: give one such as https://minio.example:9000")
	case u.User != nil:
		return nil, errors.New("endpoint holds a user name or password: remove it, credentials have fields of their own")
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, errors.New("endpoint has no http:// or https:// in front: give a URL such as https://minio.example:9000")
	case u.Hostname() == "":
		return nil, errors.New("endpoint has no host: give a URL such as https://minio.example:9000")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return nil, errors.New("endpoint has a query or fragment: remove what follows the path")
	}
	return u, nil
}

// amazon reports whether the endpoint is Amazon's own: their hosts, and no other's, end like this.
func (c Config) amazon() bool {
	u, err := c.url()
	return err == nil && (strings.HasSuffix(u.Hostname(), ".amazonaws.com") || strings.HasSuffix(u.Hostname(), ".amazonaws.com.cn"))
}

// plain reports whether what arrives is guarded by no more than TCP's checksum.
func (c Config) plain() bool {
	u, err := c.url()
	return err == nil && u.Scheme == "http"
}

func (c Config) tls() *tls.Config {
	t := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: c.Insecure}
	if len(c.CABundle) > 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool() // an image without certificates: the bundle alone decides
		}
		pool.AppendCertsFromPEM(c.CABundle)
		t.RootCAs = pool
	}
	return t
}

func http1() *http.Protocols {
	p := new(http.Protocols)
	p.SetHTTP1(true)
	return p
}
