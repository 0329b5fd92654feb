package registry

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

const benchPackages, benchVersions = 10_000, 10

// bigRegistry is one with 10,000 packages and 100,000 versions, without their
// archives, which nobody fetches here.
func bigRegistry(b *testing.B) *lab {
	b.Helper()
	l := newLab(b)
	w := l.writer()
	x := *l.tree().index
	for i := range benchPackages {
		name := nameOf(i)
		var releases []*Release
		var text bytes.Buffer
		for v := range benchVersions {
			r, err := parseRelease(fmt.Appendf(nil, `{"type":"release","format":1,"name":%q,"version":"%d.%d.%d","comment":"%s things for PostgreSQL, package number %d",`+
				`"kind":"extension","superuser":true,"postgres":">= 13","depends":"pg_spatial_%05d (>= 0.2), plpgsql","updates":[["0.%d","0.%d"]],"archive":{"sha256":%q,"size":10000}}`,
				name, v/5, v, i%7, adjectives[i%len(adjectives)], i, (i*7919)%benchPackages, v, v+1, refOf([]byte(name)).SHA256))
			l.must(err)
			releases = append(releases, r)
		}
		e := summarize(releases)
		for _, r := range releases {
			line, err := r.encode()
			l.must(err)
			text.Write(l.signText(line, l.alice))
		}
		e.releases = refOf(text.Bytes())
		if i%97 == 0 { // those that are looked at
			l.must(w.st.put(context.Background(), blobName(e.releases.SHA256), text.Bytes()))
		}
		x.Entries = append(x.Entries, e)
	}
	slices.SortFunc(x.Entries, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	l.must(w.write(context.Background(), &x, nil, l.keys()))
	return l
}

// Open verifies root, timestamp and index; then a search, and the versions of a
// hundred packages, which is more than a resolver looks at.
func BenchmarkBigRegistry(b *testing.B) {
	ctx := context.Background()
	l := bigRegistry(b)
	data := l.get(l.indexName())
	b.Logf("the index has %d bytes", len(data))
	open := func(b *testing.B) *Registry {
		r, err := Open(ctx, l.dir, l.trust, l.options)
		l.must(err)
		return r
	}
	b.Run("open", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			r := open(b)
			if len(r.Names()) != benchPackages {
				b.Fatal("packages are missing")
			}
		}
	})
	b.Run("kept in memory", func(b *testing.B) {
		for b.Loop() {
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			r := open(b)
			runtime.GC()
			runtime.ReadMemStats(&after)
			b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/(1<<20), "MB")
			runtime.KeepAlive(r)
		}
	})
	b.Run("search", func(b *testing.B) {
		r := open(b)
		for b.Loop() {
			if n := len(r.Search("spatial things")); n < 1000 {
				b.Fatalf("found %d", n)
			}
		}
	})
	b.Run("versions of 100", func(b *testing.B) {
		for b.Loop() {
			r := open(b)
			start := time.Now()
			n := 0
			for i := 0; i < benchPackages && n < 100; i += 97 {
				list, err := r.Versions(ctx, nameOf(i))
				l.must(err)
				if len(list) != benchVersions {
					b.Fatalf("%d versions", len(list))
				}
				n++
			}
			b.ReportMetric(float64(time.Since(start).Milliseconds()), "ms/100")
		}
	})
	b.Run("publish", func(b *testing.B) {
		w := l.writer()
		n := 0
		for b.Loop() {
			n++
			if _, err := w.Publish(ctx, archive(b, "foo", fmt.Sprint(n)), l.keys()...); err != nil {
				b.Fatal(err)
			}
		}
	})
}

var adjectives = []string{"fast", "simple", "distributed", "spatial", "columnar", "temporal"}

func nameOf(i int) string {
	return fmt.Sprintf("pg_%s_%05d", adjectives[i%len(adjectives)], i)
}
