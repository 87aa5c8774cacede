package segment

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
)

// Where things are in a store's prefix.
const (
	Prefix        = "segments/" // all of the below
	DataPrefix    = Prefix + "data/"
	WindowsPrefix = Prefix + "windows/"
	ClaimsPrefix  = Prefix + "claims/"
)

// Level tells how much a window may cover.
type Level int

const (
	Level1 Level = 1 // WAL objects of one hour
	Level2 Level = 2 // of one day
)

// levels are in the order in which windows are looked for.
var levels = map[Level]struct {
	span   time.Duration
	layout string
}{
	Level1: {time.Hour, "20060102T15"},
	Level2: {24 * time.Hour, "20060102"},
}

// Span is the longest time that a window of the level may cover, aligned in UTC.
func (l Level) Span() time.Duration { return levels[l].span }

// FolderPrefix is what the keys of all windows of a level have in common that
// may cover a WAL object of this time: one listing finds them.
func FolderPrefix(level Level, t time.Time) string {
	return LevelPrefix(level) + t.UTC().Format(levels[level].layout) + "/"
}

// LevelPrefix is what the keys of all windows of a level have in common, in the order
// of time.
func LevelPrefix(level Level) string { return WindowsPrefix + strconv.Itoa(int(level)) + "/" }

// Window names a manifest, and with it what WAL objects it may cover.
type Window struct {
	Level       Level
	First, Last ulid.ULID // WAL objects
}

// Key is where the window's manifest is.
func (w Window) Key() string {
	return FolderPrefix(w.Level, w.First.Timestamp()) + w.First.String() + "-" + w.Last.String()
}

// Spans reports whether the window may cover a WAL object: only the manifest
// knows.
func (w Window) Spans(object ulid.ULID) bool {
	return w.First.Compare(object) <= 0 && object.Compare(w.Last) <= 0
}

// ParseWindowKey is the reverse of Window.Key. What is not exactly a key of a
// window is none.
func ParseWindowKey(key string) (Window, bool) {
	rest, ok := strings.CutPrefix(key, WindowsPrefix)
	if !ok {
		return Window{}, false
	}
	level, rest, _ := strings.Cut(rest, "/")
	_, name, _ := strings.Cut(rest, "/")
	first, last, _ := strings.Cut(name, "-")
	n, err := strconv.Atoi(level)
	if _, known := levels[Level(n)]; err != nil || !known {
		return Window{}, false
	}
	w := Window{Level: Level(n)}
	if w.First, err = ulid.ParseStrict(first); err != nil {
		return Window{}, false
	}
	if w.Last, err = ulid.ParseStrict(last); err != nil {
		return Window{}, false
	}
	return w, w.valid() && w.Key() == key
}

// valid reports whether the window lies within what its level may cover.
func (w Window) valid() bool {
	return w.First.Compare(w.Last) <= 0 && FolderPrefix(w.Level, w.First.Timestamp()) == FolderPrefix(w.Level, w.Last.Timestamp())
}

// DataKey is where segment number n of a run is.
func DataKey(run ulid.ULID, n int) string {
	return fmt.Sprintf("%s%s-%05d", DataPrefix, run, n)
}

// ParseDataKey is the reverse of DataKey. What is not exactly a key of a segment
// is none.
func ParseDataKey(key string) (run ulid.ULID, n int, ok bool) {
	rest, ok := strings.CutPrefix(key, DataPrefix)
	if !ok {
		return run, 0, false
	}
	id, number, _ := strings.Cut(rest, "-")
	run, err := ulid.ParseStrict(id)
	if err != nil {
		return run, 0, false
	}
	n, err = strconv.Atoi(number)
	return run, n, err == nil && n >= 0 && DataKey(run, n) == key
}

// MaxRun is the longest time from a run's beginning, by its ULID, to its
// manifest: no compactor writes it later. So the segments of a run that is older,
// and by the store's own clock too, and of which there is no manifest, are a
// crashed one's.
const MaxRun = 6 * time.Hour
