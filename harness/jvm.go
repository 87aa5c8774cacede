package harness

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// JVM runs Kafka's tools and the programs in harness/java one after the other
// in one process: most of what each would take by itself is the start of Java.
type JVM struct {
	process *Process
	before4 bool // the tools are of a release before 4.0
	log     string
	in      io.WriteCloser
	out     *bufio.Reader

	mu sync.Mutex // one program at a time: standard output is the process's
}

// StartJVM starts one. It ends with the test.
func (k *Kafka) StartJVM(t testing.TB) *JVM {
	t.Helper()
	j := startJVM(t, k.dir, k.cp, k.nodes[k.opt.Nodes[0]].log4j())
	j.before4 = k.before4()
	return j
}

// StartJavaClients is StartJVM with the clients of some release, without tools.
// What it has no class for ends the program: share groups, for example.
func StartJavaClients(t testing.TB, version string) *JVM {
	t.Helper()
	cp, err := classpath("clients", version)
	if err != nil {
		t.Fatal(err)
	}
	return startJVM(t, tempDir(t, "java"), cp, "")
}

func startJVM(t testing.TB, dir, cp, log4j string) *JVM {
	t.Helper()
	newest, err := Classpath(DefaultKafka)
	if err != nil {
		t.Fatal(err)
	}
	// Older releases have what is used of them, too, and Java looks for a class when
	// it needs it.
	classes, err := javaClasses("java", newest)
	if err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(dir, "jvm.log")
	args := append(jvm(classes+string(os.PathListSeparator)+cp, log4j, "-Xmx384m"), "Runner")
	j := &JVM{log: log}
	var stdout io.ReadCloser
	if j.process, j.in, stdout, err = startPiped("JVM", log, "java", args...); err != nil {
		t.Fatal(err)
	}
	j.out = bufio.NewReaderSize(stdout, 64<<10)
	t.Cleanup(func() {
		_ = j.in.Close()
		_ = j.process.Stop(5 * time.Second)
	})
	return j
}

// javaClasses compiles a folder's programs, once for each state of the sources,
// with a class path of DefaultKafka.
func javaClasses(folder, cp string) (string, error) {
	sources, err := filepath.Glob(filepath.Join(root(), "harness", folder, "*.java"))
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	for _, s := range sources {
		b, err := os.ReadFile(s)
		if err != nil {
			return "", err
		}
		sum.Write(b)
	}
	dir := filepath.Join(cacheDir(), folder+"-classes-"+DefaultKafka+"-"+hex.EncodeToString(sum.Sum(nil)[:8]))
	return dir, once(dir, func(tmp string) error {
		javac, err := need("javac", "install a JDK 17 or newer (Debian: apt-get install openjdk-17-jdk-headless)")
		if err != nil {
			return err
		}
		return run(tmp, javac, append([]string{"-cp", cp, "-d", tmp}, sources...)...)
	})
}

// Tool runs one of Kafka's own tools, by its script's name. The test fails when
// the tool does.
func (j *JVM) Tool(t testing.TB, tool string, args ...string) string {
	t.Helper()
	r := j.TryTool(t, tool, args...)
	if r.Err != nil {
		t.Fatalf("%s %s: %v\n%s\n%s", tool, strings.Join(args, " "), r.Err, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

// TryTool is Tool for one that may fail.
func (j *JVM) TryTool(t testing.TB, tool string, args ...string) JavaResult {
	t.Helper()
	return j.Pipe(t, "", tool, args...)
}

// Pipe is TryTool with in as the tool's standard input.
func (j *JVM) Pipe(t testing.TB, in, tool string, args ...string) JavaResult {
	t.Helper()
	return j.run(toolClass(t, tool, j.before4), in, args)
}

// Java runs a program of harness/java, with in as its standard input. The test
// fails when the program does.
func (j *JVM) Java(t testing.TB, in, class string, args ...string) string {
	t.Helper()
	r := j.TryJava(in, class, args...)
	if r.Err != nil {
		t.Fatalf("%s %s: %v\n%s", class, strings.Join(args, " "), r.Err, r.Stderr)
	}
	return r.Stdout
}

// TryJava is Java for one that may fail.
func (j *JVM) TryJava(in, class string, args ...string) JavaResult { return j.run(class, in, args) }

func (j *JVM) run(class, in string, args []string) JavaResult {
	j.mu.Lock()
	defer j.mu.Unlock()
	limit := time.AfterFunc(javaTimeout, j.process.Kill)
	r, err := j.exchange(class, in, args)
	if err != nil {
		r.Err = fmt.Errorf("the JVM does not answer: %w\n%s", err, tail(j.log, 30))
		if !limit.Stop() {
			r.Err = fmt.Errorf("it did not end in %v: %w", javaTimeout, r.Err)
		}
	}
	limit.Stop()
	return r
}

func (j *JVM) exchange(class, in string, args []string) (r JavaResult, err error) {
	var b bytes.Buffer
	text := func(s string) {
		b.Write(binary.BigEndian.AppendUint32(nil, uint32(len(s))))
		b.WriteString(s)
	}
	b.Write(binary.BigEndian.AppendUint32(nil, uint32(1+len(args))))
	text(class)
	for _, a := range args {
		text(a)
	}
	text(in)
	if _, err := j.in.Write(b.Bytes()); err != nil {
		return r, err
	}
	var code uint32
	if err := binary.Read(j.out, binary.BigEndian, &code); err != nil {
		return r, err
	}
	for _, s := range []*string{&r.Stdout, &r.Stderr} {
		var n uint32
		if err := binary.Read(j.out, binary.BigEndian, &n); err != nil {
			return r, err
		}
		out := make([]byte, n)
		if _, err := io.ReadFull(j.out, out); err != nil {
			return r, err
		}
		*s = string(out)
	}
	if code != 0 {
		r.Err = fmt.Errorf("exit status %d", int32(code))
	}
	return r, nil
}

// startPiped is StartProcess with pipes for standard input and output.
func startPiped(name, logFile, program string, args ...string) (p *Process, in io.WriteCloser, out io.ReadCloser, err error) {
	theirIn, in, err := os.Pipe()
	if err != nil {
		return nil, nil, nil, err
	}
	out, theirOut, err := os.Pipe()
	if err != nil {
		return nil, nil, nil, errors.Join(err, theirIn.Close(), in.Close())
	}
	p, err = startProcess(name, logFile, program, nil, theirIn, theirOut, args...)
	_ = theirIn.Close()
	_ = theirOut.Close()
	if err != nil {
		return nil, nil, nil, errors.Join(err, in.Close(), out.Close())
	}
	return p, in, out, nil
}
