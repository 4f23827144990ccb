package s3sdk

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
)

// exchange is one attempt of one call: what was sent and what came back. It is filled by sender.Do and read after the
// SDK returns.
type exchange struct {
	long  bool   // wait longer for the answer
	place *place // held until the attempt is over
	kept  bool   // the place is held until the answer's body has been read

	sent      bool
	err       error // the transport's
	status    int
	code      string // the S3 error code, if the answer has one
	requestID string
	after     string // Retry-After
}

type exchangeKey struct{}

func withExchange(ctx context.Context, x *exchange) context.Context {
	return context.WithValue(ctx, exchangeKey{}, x)
}

func exchangeOf(ctx context.Context) *exchange {
	x, _ := ctx.Value(exchangeKey{}).(*exchange)
	if x == nil {
		return new(exchange)
	}
	return x
}

// keep hands the attempt's place over to the reader of its body.
func (x *exchange) keep() *place {
	x.kept = true
	return x.place
}

// take makes what was seen of another request of the same attempt what was seen of it.
func (x *exchange) take(y *exchange) {
	x.sent, x.err, x.status, x.code, x.requestID, x.after = y.sent, y.err, y.status, y.code, y.requestID, y.after
}

// verdict is what a failed attempt says about the server's load.
func (x *exchange) verdict(ctx context.Context) verdict {
	var network net.Error
	switch {
	case x.status == 0:
		if ctx.Err() == nil && errors.As(x.err, &network) && network.Timeout() {
			return overloaded
		}
		return unjudged
	case x.status == http.StatusTooManyRequests, x.status == http.StatusServiceUnavailable,
		x.status == http.StatusGatewayTimeout, x.status == http.StatusRequestTimeout:
		return overloaded
	case x.status >= 500:
		return unjudged
	}
	return answered
}

const (
	maxErrorBody = 64 << 10 // bytes
	maxToken     = 64       // bytes of an error code or request ID
)

// record takes the parts of an answer that decide about an error. The code is cut out of the body by hand: an XML
// decoder gives up on a body that names a key with a control byte.
func (x *exchange) record(resp *http.Response) {
	x.status = resp.StatusCode
	x.requestID = token(resp.Header.Get("X-Amz-Request-Id"))
	x.after = resp.Header.Get("Retry-After")
	if resp.StatusCode < 300 {
		return
	}
	x.code = token(resp.Header.Get("X-Minio-Error-Code"))
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	rest := resp.Body
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(body), rest), rest}
	if err != nil {
		// The status alone is an answer; a code that did not arrive is not guessed.
		return
	}
	if code := element(body, "Code"); code != "" {
		x.code = code
	}
	if x.requestID == "" {
		x.requestID = element(body, "RequestId")
	}
}

// element returns the text of the first XML element of that name, "" when it is not a plain token.
func element(body []byte, name string) string {
	_, rest, ok := bytes.Cut(body, []byte("<"+name+">"))
	if !ok {
		return ""
	}
	text, _, ok := bytes.Cut(rest, []byte("</"+name+">"))
	if !ok {
		return ""
	}
	return token(string(bytes.TrimSpace(text)))
}

// token returns s if it is short and plain, else "". Nothing else of a server's text reaches an error: some servers
// echo credentials and strings to sign.
func token(s string) string {
	if len(s) > maxToken {
		return ""
	}
	for _, c := range []byte(s) {
		if !(c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || bytes.IndexByte([]byte("-_.:=+/"), c) >= 0) {
			return ""
		}
	}
	return s
}
