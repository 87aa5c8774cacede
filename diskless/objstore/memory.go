package objstore

import (
	"context"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
	"sync"
	"time"
)

// Memory keeps objects in memory, for tests.
type Memory struct {
	mu      sync.RWMutex
	objects map[string]memoryObject
}

type memoryObject struct {
	body     []byte
	modified time.Time
}

// NewMemory returns an empty store.
func NewMemory() *Memory { return &Memory{objects: make(map[string]memoryObject)} }

func (m *Memory) put(ctx context.Context, key string, body []byte, absent bool) error {
	if err := checkKey(key); err != nil {
		return fmt.Errorf("put %q: %w", key, err)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("put %s: %w", key, err)
	}
	if sumOf(ctx, body) != crc32.Checksum(body, castagnoli) {
		return fmt.Errorf("put %s: the body has another checksum than was said", key)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.objects[key]; ok && absent {
		return fmt.Errorf("put %s: %w", key, ErrExists)
	}
	m.objects[key] = memoryObject{slices.Clone(body), time.Now()}
	return nil
}

// Put implements Store.
func (m *Memory) Put(ctx context.Context, key string, body []byte) error {
	return m.put(ctx, key, body, false)
}

// PutIfAbsent implements Store.
func (m *Memory) PutIfAbsent(ctx context.Context, key string, body []byte) error {
	return m.put(ctx, key, body, true)
}

// Get implements Store.
func (m *Memory) Get(ctx context.Context, key string, offset, length int64) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("get %s: %w", key, err)
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	o, ok := m.objects[key]
	if !ok {
		return nil, fmt.Errorf("get %s: %w", key, ErrNotFound)
	}
	size := int64(len(o.body))
	from := min(offset, size)
	to := size
	if length >= 0 {
		to = min(from+length, size)
	}
	return slices.Clone(o.body[from:to]), nil
}

// List implements Store.
func (m *Memory) List(ctx context.Context, prefix, startAfter string, fn func(Info) error) error {
	m.mu.RLock()
	var found []Info
	for k, o := range m.objects {
		if strings.HasPrefix(k, prefix) && k > startAfter {
			found = append(found, Info{k, int64(len(o.body)), o.modified})
		}
	}
	m.mu.RUnlock()
	slices.SortFunc(found, func(a, b Info) int { return strings.Compare(a.Key, b.Key) })
	for _, i := range found {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("list %s: %w", prefix, err)
		}
		if err := fn(i); err != nil {
			return err
		}
	}
	return nil
}

// Delete implements Store.
func (m *Memory) Delete(ctx context.Context, key string) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("delete %s: %w", key, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, key)
	return nil
}

func (m *Memory) String() string { return "mem://" }
