package s3test

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

func listEmpty(s *suite) {
	s.lists(s3.ListInput{})
	s.lists(s3.ListInput{Prefix: "absent/", Delimiter: "/"})
	s.put("other", "x")
	s.lists(s3.ListInput{Prefix: "absent/"})
}

func listPages(s *suite) {
	var want []string
	for i := range 23 {
		key := fmt.Sprintf("d%d/%03d", i%4, i)
		s.put(s3.Key(key), key)
		want = append(want, key)
	}
	for _, size := range []int{1, 7, 23, 24, 0} {
		s.lists(s3.ListInput{MaxKeys: size}, want...)
	}
	s.lists(s3.ListInput{Prefix: "d1/", MaxKeys: 2}, prefixed(want, "d1/")...)
	s.lists(s3.ListInput{Prefix: "d1/00", MaxKeys: 1}, prefixed(want, "d1/00")...)
	objects, _ := s.list(s3.ListInput{Prefix: "d2/"})
	for _, o := range objects {
		head, err := s.Head(s.ctx, o.Key)
		s.ok(err)
		if o.Size != head.Size || o.ETag != head.ETag || !o.Modified.Truncate(time.Second).Equal(head.Modified.Truncate(time.Second)) {
			s.Errorf("listed %+v, but it is %+v", o, head)
		}
		if o.Meta != nil {
			s.Errorf("listed with metadata: %+v", o)
		}
	}
}

func listThousand(s *suite) {
	const n = 1013
	var want []string
	for i := range n {
		want = append(want, fmt.Sprintf("many/%04d", i))
	}
	errs := parallel(16, func(w int) error {
		for i := w; i < n; i += 16 {
			if _, err := s.Put(s.ctx, s3.Key(want[i]), s3.Body{}, s3.Attributes{}, s3.Condition{}); err != nil {
				return err
			}
		}
		return nil
	})
	s.ok(errors.Join(errs...))
	s.lists(s3.ListInput{}, want...)
	s.lists(s3.ListInput{Prefix: "many/", Delimiter: "/", MaxKeys: 400}, want...)
	page, err := s.List(s.ctx, s3.ListInput{Delimiter: "/"})
	s.ok(err)
	if len(page.Prefixes) != 1 || page.Token != "" {
		s.Errorf("1013 keys under one prefix: %q, token %q", page.Prefixes, page.Token)
	}
	keys := make([]s3.Key, 1000)
	for i := range keys {
		keys[i] = s3.Key(want[i])
	}
	failed, err := s.DeleteMany(s.ctx, keys)
	s.ok(err)
	if len(failed) > 0 {
		s.Errorf("%d not deleted", len(failed))
	}
	s.lists(s3.ListInput{}, want[1000:]...)
}

func listDelimiter(s *suite) {
	for _, key := range []s3.Key{"file", "dir/a", "dir/b", "dir/sub/c", "dir2/", "é/x", "sp ace/x", "plus+/x", "per%2F/x"} {
		s.put(key, "")
	}
	s.lists(s3.ListInput{Delimiter: "/"}, "file", "dir/|", "dir2/|", "é/|", "sp ace/|", "plus+/|", "per%2F/|")
	s.lists(s3.ListInput{Delimiter: "/", Prefix: "dir"}, "dir/|", "dir2/|")
	s.lists(s3.ListInput{Delimiter: "/", Prefix: "dir/"}, "dir/a", "dir/b", "dir/sub/|")
	s.lists(s3.ListInput{Delimiter: "/", Prefix: "dir/s"}, "dir/sub/|")
	s.lists(s3.ListInput{Delimiter: "/", Prefix: "dir2/"}, "dir2/")
	s.lists(s3.ListInput{Delimiter: "/", Prefix: "sp ace/"}, "sp ace/x")
	s.lists(s3.ListInput{Delimiter: "/", Prefix: "per%2F/"}, "per%2F/x")
}

func listDelimiterPages(s *suite) {
	var want []string
	for i := range 8 {
		for j := range 3 {
			s.put(s3.Key(fmt.Sprintf("p/dir%d/%d", i, j)), "")
		}
		s.put(s3.Key(fmt.Sprintf("p/dir%d-file", i)), "")
		want = append(want, fmt.Sprintf("p/dir%d/|", i), fmt.Sprintf("p/dir%d-file", i))
	}
	for _, size := range []int{1, 2, 3, 5, 16, 0} {
		s.lists(s3.ListInput{Prefix: "p/", Delimiter: "/", MaxKeys: size}, want...)
	}
}

func listStartAfter(s *suite) {
	all := []string{"a", "b/1", "b/2", "b/3", "c", "d e", "d+e"}
	for _, key := range all {
		s.put(s3.Key(key), "")
	}
	after := func(k string) (out []string) {
		for _, key := range all {
			if key > k {
				out = append(out, key)
			}
		}
		return out
	}
	for _, k := range []string{"", "a", "aa", "b/1", "b/3", "c", "d e", "d+e", "z"} {
		s.lists(s3.ListInput{StartAfter: s3.Key(k)}, after(k)...)
		s.lists(s3.ListInput{StartAfter: s3.Key(k), MaxKeys: 2}, after(k)...)
	}
	s.lists(s3.ListInput{Prefix: "b/", StartAfter: "b/1", MaxKeys: 1}, "b/2", "b/3")
	s.lists(s3.ListInput{Delimiter: "/", StartAfter: "a"}, "b/|", "c", "d e", "d+e")
	s.lists(s3.ListInput{Delimiter: "/", StartAfter: "c", MaxKeys: 1}, "d e", "d+e")
}

func listVersions(s *suite) {
	var want []s3.Version
	for i := range 5 {
		key := s3.Key(fmt.Sprintf("v/é %d", i))
		s.put(key, "one")
		s.put(key, "two")
		want = append(want, s3.Version{Key: key})
	}
	s.put("other", "x")
	all := func() (out []s3.Version) {
		token := ""
		for {
			versions, next, err := s.ListVersions(s.ctx, "v/", token)
			s.ok(err)
			out = append(out, versions...)
			if token = next; token == "" {
				slices.SortFunc(out, func(a, b s3.Version) int { return cmp.Compare(a.Key, b.Key) })
				return out
			}
		}
	}
	got := all()
	if !slices.Equal(got, want) {
		s.Fatalf("versions:\n got %q\nwant %q", got, want)
	}
	failed, err := s.DeleteVersions(s.ctx, append(got, s3.Version{Key: "v/absent"}))
	s.ok(err)
	if len(failed) > 0 {
		s.Errorf("not deleted: %v", failed)
	}
	if left := all(); len(left) > 0 {
		s.Errorf("left: %q", left)
	}
	s.lists(s3.ListInput{}, "other")
}
