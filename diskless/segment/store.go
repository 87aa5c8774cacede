package segment

import (
	"context"
	"fmt"

	"github.com/sluice-kafka/sluice/diskless/objstore"
)

// Windows calls fn with every window below prefix, in the order of keys: level by
// level, by time. prefix is WindowsPrefix, or one of FolderPrefix. What is not a
// window's manifest by its key is passed over.
func Windows(ctx context.Context, store objstore.Store, prefix string, fn func(Window, objstore.Info) error) error {
	return store.List(ctx, prefix, "", func(i objstore.Info) error {
		if w, ok := ParseWindowKey(i.Key); ok {
			return fn(w, i)
		}
		return nil
	})
}

// ReadManifest reads a window's manifest. Errors are the store's and ErrGarbled.
func ReadManifest(ctx context.Context, store objstore.Store, w Window) (*Manifest, error) {
	b, err := store.Get(ctx, w.Key(), 0, MaxManifest+1)
	if err != nil {
		return nil, err
	}
	if len(b) > MaxManifest {
		return nil, fmt.Errorf("%s: %w: more than %d bytes", w.Key(), ErrGarbled, MaxManifest)
	}
	m, err := ParseManifest(b, w)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", w.Key(), err)
	}
	return m, nil
}

// ReadFooter reads the footer of segment n with one ranged GET, and holds it
// against the manifest. Errors are the store's and ErrGarbled.
func (m *Manifest) ReadFooter(ctx context.Context, store objstore.Store, n int) (*Footer, error) {
	s, key := &m.Segments[n], m.Key(n)
	end, err := store.Get(ctx, key, s.Size-s.FooterSize, s.FooterSize)
	if err != nil {
		return nil, err
	}
	if int64(len(end)) != s.FooterSize {
		return nil, fmt.Errorf("%s: %w: it ends before its footer does", key, ErrGarbled)
	}
	f, err := ParseFooter(end, s.Size)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	if f.batches != s.Batches || f.Payload() != s.Size-s.FooterSize {
		return nil, fmt.Errorf("%s: %w: the manifest says %d batches in %d bytes, the footer %d in %d", key, ErrGarbled, s.Batches, s.Size-s.FooterSize, f.batches, f.Payload())
	}
	return f, nil
}
