package config

import (
	"testing"
	"testing/fstest"
)

func TestMemoryThatIsThere(t *testing.T) {
	const GiB = 1 << 30
	machine := map[string]string{"proc/meminfo": "MemFree: 1 kB\nMemTotal:       8388608 kB\n"}
	for _, c := range []struct {
		why   string
		files map[string]string
		want  int64
	}{
		{"a system that tells nothing", nil, unknownMemory},
		{"half of a machine without limits", nil, 4 * GiB},
		{"no limit is a word", map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, 4 * GiB},
		{"nor is what no machine has a limit", map[string]string{"proc/self/cgroup": "4:memory:/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, 4 * GiB},
		{"all of a limit", map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "1073741824\n"}, 1 * GiB},
		{"the least of the process's cgroup and those around it", map[string]string{
			"proc/self/cgroup": "0::/pods/a\n", "sys/fs/cgroup/pods/memory.max": "2147483648\n", "sys/fs/cgroup/pods/a/memory.max": "3221225472\n",
		}, 2 * GiB},
		{"a container that does not see its own path", map[string]string{"proc/self/cgroup": "0::/../b\n", "sys/fs/cgroup/memory.max": "3221225472\n"}, 3 * GiB},
		{"the first version, with its many hierarchies", map[string]string{
			"proc/self/cgroup": "9:cpu,cpuacct:/c\n4:memory:/c\n0::/\n", "sys/fs/cgroup/memory/c/memory.limit_in_bytes": "1073741824\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
		}, 1 * GiB},
	} {
		root := fstest.MapFS{}
		if c.want != unknownMemory || c.files != nil {
			for name, text := range machine {
				root[name] = &fstest.MapFile{Data: []byte(text)}
			}
		}
		for name, text := range c.files {
			root[name] = &fstest.MapFile{Data: []byte(text)}
		}
		if got := memoryOf(root); got != c.want {
			t.Errorf("%s: %d, want %d", c.why, got, c.want)
		}
	}
}

func TestMemoryIsDivided(t *testing.T) {
	t.Setenv("GOMEMLIMIT", "")
	for _, memory := range []int64{minMemory, 256 << 20, 1 << 30, 1 << 40} {
		l := Limits{MemoryBytes: memory}
		l.share(func(string) bool { return false })
		if held := l.HeldBytes(); held > memory*7/8 {
			t.Errorf("of %d bytes the budgets take %d: too little is left", memory, held)
		}
		if l.FrameBytes < 1<<20 || l.RequestMemoryBytes < frameShare*l.FrameBytes || l.ResponseMemoryBytes < frameShare*l.FrameBytes {
			t.Errorf("of %d bytes a frame may take %d", memory, l.FrameBytes)
		}
	}
	cfg := parse(t, minimal+"limits: { memory_bytes: 1GiB, cache_bytes: 64MiB }\n")
	if l := cfg.Limits; l.CacheBytes != 64<<20 || l.WriteBufferBytes != 64<<20 || l.RequestMemoryBytes != 128<<20 || l.ResponseMemoryBytes != 256<<20 || l.FrameBytes != 64<<20 {
		t.Errorf("what is set stays, the rest are shares: %+v", l)
	}
	t.Setenv("GOMEMLIMIT", "off")
	if auto := parse(t, minimal).Limits.MemoryBytes; auto < minMemory {
		t.Errorf("auto is %d", auto)
	}
}
