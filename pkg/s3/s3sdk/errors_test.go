package s3sdk_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3sdk"
)

func TestErrorsBecomeSentinels(t *testing.T) {
	for _, c := range []struct {
		status int
		code   string
		want   error
	}{
		{404, "NoSuchKey", s3.ErrNotExist},
		{404, "NoSuchBucket", s3.ErrNoBucket},
		{404, "NoSuchUpload", s3.ErrNoUpload},
		{404, "", s3.ErrUnavailable},
		{404, "SomethingElse", s3.ErrUnavailable},
		{400, "InvalidArgument", s3.ErrInvalid},
		{400, "KeyTooLongError", s3.ErrInvalid},
		{400, "EntityTooLarge", s3.ErrInvalid},
		{400, "XMinioInvalidObjectName", s3.ErrInvalid},
		{400, "", s3.ErrInvalid},
		{400, "RequestTimeout", s3.ErrUnavailable},
		{400, "ExpiredToken", s3.ErrKeys},
		{400, "AuthorizationHeaderMalformed", s3.ErrAuth},
		{400, "BadDigest", s3.ErrCorrupt},
		{400, "XAmzContentChecksumMismatch", s3.ErrCorrupt},
		{400, "XMinioAdminBucketQuotaExceeded", s3.ErrFull},
		{401, "", s3.ErrAuth},
		{403, "AccessDenied", s3.ErrAuth},
		{403, "SignatureDoesNotMatch", s3.ErrKeys},
		{403, "InvalidAccessKeyId", s3.ErrKeys},
		{403, "QuotaExceeded", s3.ErrFull},
		{403, "", s3.ErrAuth},
		{405, "MethodNotAllowed", s3.ErrNotSupported},
		{408, "", s3.ErrUnavailable},
		{409, "ConditionalRequestConflict", s3.ErrPrecondition},
		{409, "OperationAborted", s3.ErrUnavailable},
		{409, "ObjectParentIsFile", s3.ErrInvalid},
		{412, "PreconditionFailed", s3.ErrPrecondition},
		{412, "", s3.ErrPrecondition},
		{416, "InvalidRange", s3.ErrRange},
		{429, "", s3.ErrUnavailable},
		{500, "InternalError", s3.ErrUnavailable},
		{501, "NotImplemented", s3.ErrNotSupported},
		{502, "", s3.ErrUnavailable},
		{503, "SlowDown", s3.ErrUnavailable},
		{504, "", s3.ErrUnavailable},
		{507, "XMinioStorageFull", s3.ErrFull},
		{304, "", s3.ErrNotModified},
		{301, "PermanentRedirect", s3.ErrInvalid},
		{307, "TemporaryRedirect", s3.ErrUnavailable},
		{418, "", nil},
	} {
		s := serve(t, func(w http.ResponseWriter, _ request, _ int) { fault(w, c.status, c.code) })
		cfg := config(s.URL)
		cfg.Attempts = 1
		b := open(t, cfg)
		_, _, err := b.Get(t.Context(), "some key", nil, "")
		for _, sentinel := range []error{
			s3.ErrNotExist, s3.ErrNoBucket, s3.ErrBucketExists, s3.ErrBucketNotEmpty, s3.ErrPrecondition, s3.ErrNotModified, s3.ErrNoUpload,
			s3.ErrRange, s3.ErrAuth, s3.ErrKeys, s3.ErrFull, s3.ErrUnavailable, s3.ErrCorrupt, s3.ErrInvalid, s3.ErrNotSupported,
		} {
			if got := errors.Is(err, sentinel); got != errors.Is(c.want, sentinel) {
				t.Errorf("%d %s: %v: is %v: %v", c.status, c.code, err, sentinel, got)
			}
		}
		var detail *s3sdk.Error
		if !errors.As(err, &detail) || detail.Status != c.status || detail.Code != c.code {
			t.Errorf("%d %s: detail %+v", c.status, c.code, detail)
		}
		if err == nil {
			continue
		}
		for _, part := range []string{"get", `bkt/"some key"`, c.code, fmt.Sprint(c.status), "REQ1"} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%d %s: %q does not tell %q", c.status, c.code, err, part)
			}
		}
	}
}

func TestUndecodableErrorKeepsItsCode(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, _ request, _ int) {
		w.WriteHeader(404)
		fmt.Fprint(w, "<Error><Code>NoSuchKey</Code><Key>c\x01d</Key></Error>")
	})
	_, _, err := open(t, config(s.URL)).Get(t.Context(), "c\x01d", nil, "")
	if !errors.Is(err, s3.ErrNotExist) {
		t.Error(err)
	}
}

func TestNoAnswerIsUnavailable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refused := "http://" + l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	hangup := serve(t, func(w http.ResponseWriter, _ request, _ int) { hang(w) })
	garbage := serve(t, func(w http.ResponseWriter, _ request, _ int) { raw(w, "not HTTP at all\r\n\r\n") })
	truncated := serve(t, func(w http.ResponseWriter, _ request, _ int) {
		raw(w, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n<ListBucketResult><Contents><Key>a</Key>")
	})
	for name, url := range map[string]string{"refused": refused, "hang up": hangup.URL, "garbage": garbage.URL, "truncated": truncated.URL} {
		cfg := config(url)
		cfg.Attempts = 2
		_, err := open(t, cfg).List(t.Context(), s3.ListInput{})
		if !errors.Is(err, s3.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := len(hangup.seen()); n < 2 {
		t.Errorf("%d attempts after a hang-up, want 2", n)
	}
}

// raw answers with these bytes and closes the connection.
func raw(w http.ResponseWriter, answer string) {
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	_, _ = buf.WriteString(answer) // the client may be gone
	_ = buf.Flush()
	_ = conn.Close()
}

func hang(w http.ResponseWriter) { raw(w, "") }

func TestSecretsAreNotInErrors(t *testing.T) {
	echo := func(r request) string {
		return fmt.Sprintf("%s %s %s %s", accessKey, r.Header.Get("Authorization"), token, secretKey)
	}
	for name, answer := range map[string]func(w http.ResponseWriter, r request, n int){
		"message": func(w http.ResponseWriter, r request, _ int) {
			w.WriteHeader(403)
			fmt.Fprintf(w, "<Error><Code>SignatureDoesNotMatch</Code><Message>%s</Message><AWSAccessKeyId>%s</AWSAccessKeyId><StringToSign>%s</StringToSign><RequestId>R</RequestId></Error>",
				echo(r), accessKey, echo(r))
		},
		"code": func(w http.ResponseWriter, _ request, _ int) {
			w.Header().Set("X-Amz-Request-Id", secretKey)
			w.WriteHeader(400)
			fmt.Fprintf(w, "<Error><Code>%s</Code></Error>", accessKey)
		},
		"request ID": func(w http.ResponseWriter, _ request, _ int) {
			w.Header().Set("X-Amz-Request-Id", "id-"+token)
			w.WriteHeader(400)
		},
		"200": func(w http.ResponseWriter, r request, _ int) {
			fmt.Fprintf(w, "<Error><Code>%s</Code><Message>%s</Message></Error>", accessKey, echo(r))
		},
		"status line": func(w http.ResponseWriter, r request, _ int) { raw(w, "HTTP/1.1 "+echo(r)+"\r\n\r\n") },
		"header":      func(w http.ResponseWriter, r request, _ int) { raw(w, "HTTP/1.1 200 OK\r\n"+echo(r)+"\r\n\r\n") },
		"redirect": func(w http.ResponseWriter, r request, _ int) {
			w.Header().Set("Location", "http://"+accessKey+":"+secretKey+"@127.0.0.1:1/")
			w.WriteHeader(307)
		},
		"list": func(w http.ResponseWriter, r request, _ int) {
			xml(w, "<ListBucketResult><Contents><Size>"+echo(r)+"</Size></Contents></ListBucketResult>")
		},
	} {
		s := serve(t, answer)
		cfg := config(s.URL)
		cfg.Attempts = 1
		b := open(t, cfg)
		_, headErr := b.Head(t.Context(), "k")
		_, _, getErr := b.Get(t.Context(), "k", nil, "etag")
		_, putErr := b.Put(t.Context(), "k", body("x"), s3.Attributes{}, s3.Condition{})
		_, listErr := b.List(t.Context(), s3.ListInput{})
		_, completeErr := b.CompleteUpload(t.Context(), "k", "id", []s3.Part{{Number: 1, ETag: "e"}}, s3.Condition{})
		_, manyErr := b.DeleteMany(t.Context(), []s3.Key{"k"})
		errs := []error{headErr, getErr, putErr, listErr, completeErr, manyErr, b.HeadBucket(t.Context()), b.CreateBucket(t.Context())}
		for _, err := range errs {
			text := fmt.Sprintf("%v\n%+v\n%#v\n%s", err, err, err, err)
			for _, secret := range []string{accessKey, secretKey, token, "Signature=", "StringToSign"} {
				if strings.Contains(text, secret) {
					t.Errorf("%s: %q is in:\n%s", name, secret, text)
				}
			}
		}
	}
}

func TestHead404IsSettled(t *testing.T) {
	for _, c := range []struct {
		name     string
		get      func(w http.ResponseWriter)
		want     error
		requests int
	}{
		{"absent key", func(w http.ResponseWriter) { fault(w, 404, "NoSuchKey") }, s3.ErrNotExist, 2},
		{"absent bucket", func(w http.ResponseWriter) { fault(w, 404, "NoSuchBucket") }, s3.ErrNoBucket, 2},
		{"load balancer", func(w http.ResponseWriter) { w.WriteHeader(404); fmt.Fprint(w, "default backend - 404") }, s3.ErrUnavailable, 2},
		{"outage", func(w http.ResponseWriter) { w.WriteHeader(502) }, s3.ErrUnavailable, 2},
		{"no rights", func(w http.ResponseWriter) { fault(w, 403, "AccessDenied") }, s3.ErrAuth, 2},
		{"appeared", func(w http.ResponseWriter) { fmt.Fprint(w, "x") }, s3.ErrUnavailable, 2},
	} {
		s := serve(t, func(w http.ResponseWriter, r request, _ int) {
			if r.Method == http.MethodHead {
				w.WriteHeader(404)
				return
			}
			c.get(w)
		})
		cfg := config(s.URL)
		cfg.Attempts = 1
		_, err := open(t, cfg).Head(t.Context(), "k")
		if !errors.Is(err, c.want) || !errors.Is(c.want, s3.ErrNotExist) && errors.Is(err, s3.ErrNotExist) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		if n := len(s.seen()); n != c.requests {
			t.Errorf("%s: %d requests", c.name, n)
		}
	}
}

// The answer to a HEAD has no body: what a refusal means is found out by a GET.
func TestRefusedHeadIsSettled(t *testing.T) {
	for _, c := range []struct {
		name   string
		status int
		get    func(w http.ResponseWriter)
		want   error
		not    error
	}{
		{"no rights", 403, func(w http.ResponseWriter) { fault(w, 403, "AccessDenied") }, s3.ErrAuth, s3.ErrKeys},
		{"unknown keys", 403, func(w http.ResponseWriter) { fault(w, 403, "InvalidAccessKeyId") }, s3.ErrKeys, s3.ErrUnavailable},
		{"an expired token", 400, func(w http.ResponseWriter) { fault(w, 400, "ExpiredToken") }, s3.ErrKeys, s3.ErrInvalid},
		{"a bad request", 400, func(w http.ResponseWriter) { fault(w, 400, "InvalidArgument") }, s3.ErrInvalid, s3.ErrAuth},
		{"the keys came back", 403, func(w http.ResponseWriter) { fmt.Fprint(w, "x") }, s3.ErrUnavailable, s3.ErrAuth},
	} {
		s := serve(t, func(w http.ResponseWriter, r request, _ int) {
			if r.Method == http.MethodHead {
				w.WriteHeader(c.status)
				return
			}
			c.get(w)
		})
		cfg := config(s.URL)
		cfg.Attempts = 1
		if _, err := open(t, cfg).Head(t.Context(), "k"); !errors.Is(err, c.want) || errors.Is(err, c.not) {
			t.Errorf("%s: %v, want %v and not %v", c.name, err, c.want, c.not)
		}
	}
}

func TestHead404OfAKnownBucketIsOneRequest(t *testing.T) {
	balancer := atomic.Bool{}
	s := serve(t, func(w http.ResponseWriter, r request, _ int) {
		if balancer.Load() {
			w.Header().Del("X-Amz-Request-Id")
			http.NotFound(w, r.Request)
			return
		}
		if r.Method == http.MethodHead {
			w.WriteHeader(404)
			return
		}
		fault(w, 404, "NoSuchKey")
	})
	cfg := config(s.URL)
	cfg.Attempts = 1
	b := open(t, cfg)
	for range 5 {
		if _, err := b.Head(t.Context(), "k"); !errors.Is(err, s3.ErrNotExist) {
			t.Fatal(err)
		}
	}
	if n := len(s.seen()); n != 6 {
		t.Errorf("%d requests for 5 heads, want 6", n)
	}
	balancer.Store(true)
	if _, err := b.Head(t.Context(), "k"); !errors.Is(err, s3.ErrUnavailable) || errors.Is(err, s3.ErrNotExist) {
		t.Errorf("a 404 without a request ID: %v", err)
	}
}

func TestHeadBucket404IsSettled(t *testing.T) {
	for _, c := range []struct {
		name string
		list func(w http.ResponseWriter)
		want error
	}{
		{"absent", func(w http.ResponseWriter) { fault(w, 404, "NoSuchBucket") }, s3.ErrNoBucket},
		{"load balancer", func(w http.ResponseWriter) { w.WriteHeader(404) }, s3.ErrUnavailable},
		{"there after all", func(w http.ResponseWriter) {
			xml(w, "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>")
		}, nil},
	} {
		s := serve(t, func(w http.ResponseWriter, r request, _ int) {
			if r.Method == http.MethodHead {
				w.WriteHeader(404)
				return
			}
			c.list(w)
		})
		cfg := config(s.URL)
		cfg.Attempts = 1
		if err := open(t, cfg).HeadBucket(t.Context()); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

func TestDeleteBelievesOnlyAnS3Server(t *testing.T) {
	for _, c := range []struct {
		code string
		want error
	}{{"NoSuchKey", nil}, {"NoSuchBucket", s3.ErrNoBucket}, {"", s3.ErrUnavailable}} {
		s := serve(t, func(w http.ResponseWriter, _ request, _ int) { fault(w, 404, c.code) })
		cfg := config(s.URL)
		cfg.Attempts = 1
		if err := open(t, cfg).Delete(t.Context(), "k"); !errors.Is(err, c.want) {
			t.Errorf("%q: %v, want %v", c.code, err, c.want)
		}
	}
}

func TestSuccessThatIsNone(t *testing.T) {
	// Errors after a status of 200, and answers of something that is not an S3 server.
	for name, answer := range map[string]string{
		"error": "<Error><Code>InternalError</Code></Error>", "empty": "", "page": "<html>welcome</html>", "cut": "<CopyObjectResult><ETag>",
	} {
		s := serve(t, func(w http.ResponseWriter, _ request, _ int) { xml(w, answer) })
		cfg := config(s.URL)
		cfg.Attempts = 1
		b := open(t, cfg)
		_, copyErr := b.Copy(t.Context(), "a", "", "b", nil, s3.Condition{})
		_, partErr := b.CopyPart(t.Context(), "k", "id", 1, "a", "", s3.Range{Off: 0, End: 1})
		_, completeErr := b.CompleteUpload(t.Context(), "k", "id", []s3.Part{{Number: 1, ETag: "e"}}, s3.Condition{})
		_, createErr := b.CreateUpload(t.Context(), "k", s3.Attributes{})
		_, putErr := b.Put(t.Context(), "k", body("x"), s3.Attributes{}, s3.Condition{})
		for i, err := range []error{copyErr, partErr, completeErr, createErr, putErr} {
			if !errors.Is(err, s3.ErrUnavailable) {
				t.Errorf("%s, call %d: %v", name, i, err)
			}
		}
	}
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	other := serve(t, func(w http.ResponseWriter, _ request, _ int) { tagged(w) })
	s := serve(t, func(w http.ResponseWriter, r request, _ int) {
		http.Redirect(w, r.Request, other.URL+r.URL.Path, http.StatusTemporaryRedirect)
	})
	cfg := config(s.URL)
	cfg.Attempts = 1
	if _, err := open(t, cfg).Put(t.Context(), "k", body("x"), s3.Attributes{}, s3.Condition{}); !errors.Is(err, s3.ErrUnavailable) {
		t.Error(err)
	}
	if n := len(other.seen()); n != 0 {
		t.Errorf("%d requests, signed for one server, went to another", n)
	}
}

func TestCancelEndsACall(t *testing.T) {
	release := make(chan struct{})
	s := serve(t, func(w http.ResponseWriter, r request, _ int) {
		if strings.HasSuffix(r.URL.Path, "/body") {
			w.Header().Set("Content-Length", "100")
			tagged(w)
			fmt.Fprint(w, "begin")
			_ = http.NewResponseController(w).Flush() // the client may be gone
		}
		<-release
	})
	defer close(release)
	b := open(t, config(s.URL))
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err := b.Head(ctx, "k")
	if !errors.Is(err, s3.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), s.URL) {
		t.Error(err)
	}

	ctx, cancel = context.WithCancel(t.Context())
	rc, _, err := b.Get(ctx, "body", nil, "")
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := io.ReadAll(rc); !errors.Is(err, s3.ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := rc.Close(); err != nil {
		t.Error(err)
	}
	if d := time.Since(start); d > 3*time.Second {
		t.Errorf("took %v", d)
	}
}

// Some servers answer 404 to an If-Match on an absent key: of a copy, that says nothing about the source.
func TestCopy404UnderAConditionIsOfTheDestination(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, _ request, _ int) { fault(w, 404, "NoSuchKey") })
	b := open(t, config(s.URL))
	for cond, want := range map[s3.Condition]error{{IfMatch: "tag"}: s3.ErrPrecondition, {IfNoneMatch: true}: s3.ErrNotExist, {}: s3.ErrNotExist} {
		if _, err := b.Copy(t.Context(), "src", "", "dst", nil, cond); !errors.Is(err, want) {
			t.Errorf("%+v: %v, want %v", cond, err, want)
		}
	}
}
