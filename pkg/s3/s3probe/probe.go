package s3probe

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

const (
	// maxFailures is how many requests of a probe may go unanswered before it ends.
	maxFailures = 3
	// cleanTime bounds the removal of what a probe has made. A later one removes what is left.
	cleanTime = 5 * time.Second
	// litter is how old scratch objects of another probe are when nobody uses them any more.
	litter = time.Hour
)

// wrongTag is an ETag that no object has.
const wrongTag s3.ETag = "00000000000000000000000000000000"

// Probe finds out what the server makes of every feature, by at most 48 short requests. It writes nothing but small objects
// below dir, which it removes. What it leaves when it is broken off has no effect, and a later one removes it by some
// requests more.
//
// What could not be found out is not in the answers, and the error says why. A server that does not answer is never
// taken for one that lacks something.
func Probe(ctx context.Context, b s3.Bucket, dir s3.Key) (Answers, error) {
	p := &probe{
		b: b, answers: Answers{}, tags: map[s3.Key]s3.ETag{}, top: dir,
		dir: dir + s3.Key(strings.ToLower(rand.Text()[:12])) + "/",
	}
	err := p.put(ctx, "object", s3.Condition{})
	if err == nil {
		err = p.put(ctx, "doomed", s3.Condition{})
	}
	if err != nil {
		p.fail(err)
	} else {
		p.puts(ctx)
		p.completions(ctx)
		p.copies(ctx)
		p.copiedParts(ctx)
		p.reads(ctx)
		p.deletion(ctx)
		p.names(ctx)
	}
	p.clean(ctx)
	if p.cause == nil {
		p.cause = ctx.Err()
	}
	return p.answers, p.cause
}

// probe is one run. Its methods are called one after the other.
type probe struct {
	b        s3.Bucket
	top, dir s3.Key
	answers  Answers
	tags     map[s3.Key]s3.ETag // of the objects that may be there, by name
	extra    []s3.Key           // more keys to remove: other probes left them
	now      time.Time          // by the server's clock
	writes   int                // makes each body another one
	failures int
	cause    error // why something is unknown
}

// over says that there is no use in going on.
func (p *probe) over(ctx context.Context) bool { return p.failures >= maxFailures || ctx.Err() != nil }

// fail notes an error that says nothing about a feature.
func (p *probe) fail(err error) {
	p.failures++
	if p.cause == nil {
		p.cause = err
	}
}

// declined says that the server does not want such a request, as opposed to failing in it.
func declined(err error) bool {
	return errors.Is(err, s3.ErrNotSupported) || errors.Is(err, s3.ErrInvalid)
}

// errMoot: the request is refused for another reason than its condition, so nothing will be found out.
var errMoot = errors.New("moot")

// condition asks for one condition: broken is a request under one that does not hold, kept one under one that does.
func (p *probe) condition(ctx context.Context, f s3.Feature, broken, kept func() error) {
	if p.over(ctx) {
		return
	}
	err := broken()
	switch {
	case err == nil:
		p.answers[f] = Ignored
		return
	case errors.Is(err, errMoot):
		return // nothing failed, and nothing was found out
	case declined(err):
		p.answers[f] = Refused
		return
	case !errors.Is(err, s3.ErrPrecondition):
		p.fail(err)
		return
	}
	err = kept()
	switch {
	case err == nil:
		p.answers[f] = Honoured
	case errors.Is(err, errMoot):
	case declined(err), errors.Is(err, s3.ErrPrecondition), errors.Is(err, s3.ErrNotExist):
		p.answers[f] = Refused // it does not see that it holds
	default:
		p.fail(err)
	}
}

// wrote notes the result of a request that makes an object.
func (p *probe) wrote(name s3.Key, info s3.Info, err error) error {
	switch {
	case err == nil:
		p.tags[name] = info.ETag
	case !declined(err) && !errors.Is(err, s3.ErrPrecondition):
		p.tags[name] = "" // it may be there
	}
	return err
}

// tag is the ETag of an object now, which is looked for when an answer was lost.
func (p *probe) tag(ctx context.Context, name s3.Key) (s3.ETag, error) {
	if p.tags[name] == "" {
		info, err := p.b.Head(ctx, p.dir+name)
		if err != nil {
			return "", err
		}
		p.tags[name] = info.ETag
	}
	return p.tags[name], nil
}

// matching is a request under the ETag that an object has.
func (p *probe) matching(ctx context.Context, name s3.Key, request func(s3.ETag) error) func() error {
	return func() error {
		tag, err := p.tag(ctx, name)
		if err != nil {
			return fmt.Errorf("look for %q: %v", string(name), err) //nolint:errorlint // this one says nothing about a feature
		}
		return request(tag)
	}
}

func (p *probe) body() s3.Body {
	p.writes++
	text := fmt.Sprintf("csi-s3 probe, body %2d", p.writes)
	return s3.Body{R: strings.NewReader(text), Size: int64(len(text))}
}

func (p *probe) put(ctx context.Context, name s3.Key, cond s3.Condition) error {
	info, err := p.b.Put(ctx, p.dir+name, p.body(), s3.Attributes{}, cond)
	return p.wrote(name, info, err)
}

func (p *probe) puts(ctx context.Context) {
	p.condition(ctx, s3.PutIfNoneMatch,
		func() error { return p.put(ctx, "object", s3.Condition{IfNoneMatch: true}) },
		func() error { return p.put(ctx, "second", s3.Condition{IfNoneMatch: true}) })
	p.condition(ctx, s3.PutIfMatch,
		func() error { return p.put(ctx, "object", s3.Condition{IfMatch: wrongTag}) },
		p.matching(ctx, "object", func(tag s3.ETag) error { return p.put(ctx, "object", s3.Condition{IfMatch: tag}) }))
}

// complete makes an object of one part.
func (p *probe) complete(ctx context.Context, name s3.Key, cond s3.Condition) error {
	key := p.dir + name
	id, err := p.b.CreateUpload(ctx, key, s3.Attributes{})
	if err != nil {
		return err
	}
	part, err := p.b.UploadPart(ctx, key, id, 1, p.body())
	if err == nil {
		var info s3.Info
		info, err = p.b.CompleteUpload(ctx, key, id, []s3.Part{part}, cond)
		err = p.wrote(name, info, err)
	}
	if err != nil {
		p.abort(ctx, key, id)
	}
	return err
}

// abort drops an upload, also when the probe was broken off.
func (p *probe) abort(ctx context.Context, key s3.Key, id s3.UploadID) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTime)
	defer cancel()
	if err := p.b.AbortUpload(ctx, key, id); err != nil {
		p.fail(err)
	}
}

// abortOld drops the uploads of probes that were broken off.
func (p *probe) abortOld(ctx context.Context) {
	uploads, _, err := p.b.ListUploads(ctx, p.top)
	if err != nil {
		p.fail(err)
		return
	}
	for _, u := range uploads {
		if p.now.Sub(u.Initiated) > litter {
			p.abort(ctx, u.Key, u.ID)
		}
	}
}

func (p *probe) completions(ctx context.Context) {
	p.condition(ctx, s3.CompleteIfNoneMatch,
		func() error { return p.complete(ctx, "object", s3.Condition{IfNoneMatch: true}) },
		func() error { return p.complete(ctx, "parts", s3.Condition{IfNoneMatch: true}) })
	p.condition(ctx, s3.CompleteIfMatch,
		func() error { return p.complete(ctx, "object", s3.Condition{IfMatch: wrongTag}) },
		p.matching(ctx, "object", func(tag s3.ETag) error { return p.complete(ctx, "object", s3.Condition{IfMatch: tag}) }))
}

func (p *probe) copy(ctx context.Context, match s3.ETag, to s3.Key, cond s3.Condition) error {
	info, err := p.b.Copy(ctx, p.dir+"object", match, p.dir+to, nil, cond)
	return p.wrote(to, info, err)
}

func (p *probe) copies(ctx context.Context) {
	p.condition(ctx, s3.CopySourceIfMatch,
		func() error { return p.copy(ctx, wrongTag, "copy", s3.Condition{}) },
		p.matching(ctx, "object", func(tag s3.ETag) error { return p.copy(ctx, tag, "copy", s3.Condition{}) }))
	if !p.over(ctx) && p.tags["copy"] == "" {
		return // it cannot copy
	}
	p.condition(ctx, s3.CopyIfNoneMatch,
		func() error { return p.copy(ctx, "", "copy", s3.Condition{IfNoneMatch: true}) },
		func() error { return p.copy(ctx, "", "third", s3.Condition{IfNoneMatch: true}) })
	p.condition(ctx, s3.CopyIfMatch,
		func() error { return p.copy(ctx, "", "copy", s3.Condition{IfMatch: wrongTag}) },
		p.matching(ctx, "copy", func(tag s3.ETag) error { return p.copy(ctx, "", "copy", s3.Condition{IfMatch: tag}) }))
}

func (p *probe) copiedParts(ctx context.Context) {
	if p.over(ctx) {
		return
	}
	key := p.dir + "assembled"
	id, err := p.b.CreateUpload(ctx, key, s3.Attributes{})
	if err != nil {
		p.fail(err)
		return
	}
	part := func(match s3.ETag) error {
		_, err := p.b.CopyPart(ctx, key, id, 1, p.dir+"object", match, s3.Range{End: 10})
		if errors.Is(err, s3.ErrInvalid) {
			err = errMoot // Amazon S3 refuses a range of a source of less than 5 MiB
		}
		return err
	}
	p.condition(ctx, s3.CopyPartIfMatch, func() error { return part(wrongTag) }, p.matching(ctx, "object", part))
	p.abort(ctx, key, id)
}

func (p *probe) deletion(ctx context.Context) {
	doomed := func(match s3.ETag) error { return p.b.DeleteIf(ctx, p.dir+"doomed", match) }
	p.condition(ctx, s3.DeleteIfMatch, func() error { return doomed(wrongTag) }, p.matching(ctx, "doomed", doomed))
}

// read reads an object, or a range of it.
func (p *probe) read(ctx context.Context, name s3.Key, r *s3.Range) (string, s3.Info, error) {
	body, info, err := p.b.Get(ctx, p.dir+name, r, "")
	if err != nil {
		return "", info, err
	}
	data, err := io.ReadAll(body)
	return string(data), info, errors.Join(err, body.Close())
}

func (p *probe) reads(ctx context.Context) {
	checked := func(f s3.Feature, name s3.Key) {
		if p.over(ctx) || p.tags[name] == "" {
			return
		}
		_, info, err := p.read(ctx, name, nil)
		switch {
		case err != nil:
			p.fail(err)
		case info.Checked:
			p.answers[f] = Honoured
		default:
			p.answers[f] = Ignored
		}
	}
	if !p.over(ctx) && p.tags["parts"] == "" {
		if err := p.complete(ctx, "parts", s3.Condition{}); err != nil {
			p.fail(err)
		}
	}
	checked(s3.StoredChecksum, "doomed")
	checked(s3.MultipartChecksum, "parts")
	if p.over(ctx) || p.tags["parts"] == "" {
		return
	}
	const whole = "csi-s3 probe, body"
	text, _, err := p.read(ctx, "parts", &s3.Range{Off: 7, End: int64(len(whole))})
	switch {
	case err == nil && text == whole[7:]:
		p.answers[s3.MultipartRange] = Honoured
	case err == nil, errors.Is(err, s3.ErrCorrupt):
		p.answers[s3.MultipartRange] = Ignored
	case declined(err):
		p.answers[s3.MultipartRange] = Refused
	default:
		p.fail(err)
	}
}

// names puts an object of an odd name and looks for it in a listing, which also finds what earlier probes left.
func (p *probe) names(ctx context.Context) {
	if p.over(ctx) {
		return
	}
	const odd = "name +%2B&<\u00e9>\x01"
	err := p.put(ctx, odd, s3.Condition{})
	switch {
	case err == nil:
	case declined(err):
		p.answers[s3.EncodedKeys] = Refused
	default:
		p.fail(err)
	}
	page, err := p.b.List(ctx, s3.ListInput{Prefix: p.top})
	if err != nil {
		p.fail(err)
		return
	}
	found := false
	for _, o := range page.Objects {
		if strings.HasPrefix(string(o.Key), string(p.dir)) && o.Modified.After(p.now) {
			p.now = o.Modified
		}
		found = found || o.Key == p.dir+odd
	}
	for _, o := range page.Objects {
		if p.now.Sub(o.Modified) > litter && len(p.extra) < 500 {
			p.extra = append(p.extra, o.Key)
		}
	}
	switch _, known := p.answers[s3.EncodedKeys]; {
	case known || p.tags[odd] == "":
	case found:
		p.answers[s3.EncodedKeys] = Honoured
	default:
		p.answers[s3.EncodedKeys] = Ignored
	}
}

// clean removes all that was made, also when the probe was broken off.
func (p *probe) clean(ctx context.Context) {
	ended := p.over(ctx)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTime)
	defer cancel()
	if len(p.extra) > 0 {
		p.abortOld(ctx) // before the objects go that tell of them
	}
	keys := p.extra
	for name := range p.tags {
		keys = append(keys, p.dir+name)
	}
	failed, err := p.b.DeleteMany(ctx, keys)
	switch {
	case err == nil && len(failed) == 0:
		p.answers[s3.MultiDelete] = Honoured
		return
	case declined(err):
		p.answers[s3.MultiDelete] = Refused
	case err != nil:
		p.fail(err)
	default:
		for _, err = range failed {
			p.fail(err)
			break
		}
	}
	if ended {
		return
	}
	for name := range p.tags {
		if err := p.b.Delete(ctx, p.dir+name); err != nil {
			p.fail(err)
			return
		}
	}
}
