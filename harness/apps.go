package harness

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// App is a Java program that runs beside the test: a stream processor of
// harness/apps, a Connect worker, MirrorMaker.
type App struct {
	*Process
	log string
}

// StartApp starts a main class of Kafka Streams, Connect, MirrorMaker or
// harness/apps, all of DefaultKafka. It ends with the test.
func StartApp(t testing.TB, class string, args ...string) *App {
	t.Helper()
	cp, err := classpath("apps", DefaultKafka)
	if err != nil {
		t.Fatal(err)
	}
	classes, err := javaClasses("apps", cp)
	if err != nil {
		t.Fatal(err)
	}
	dir := tempDir(t, "app")
	a := &App{log: filepath.Join(dir, "app.log")}
	log4j := filepath.Join(dir, "log4j2.properties")
	if err := os.WriteFile(log4j, []byte(log4jProperties), 0o644); err != nil {
		t.Fatal(err)
	}
	a.Process, err = StartProcess(class, a.log, "java", nil,
		append(append(jvm(classes+string(os.PathListSeparator)+cp, log4j, "-Xmx256m"), class), args...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if ended, _ := a.Ended(); !ended {
			_ = a.Stop(20 * time.Second)
		}
		if t.Failed() {
			t.Logf("the log of %s ends:\n%s", class, tail(a.log, 60))
		}
	})
	return a
}

// Log is everything that it has printed and logged so far.
func (a *App) Log(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile(a.log)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Properties writes a file of Java properties for a program.
func Properties(t testing.TB, properties map[string]string) (file string) {
	t.Helper()
	var b strings.Builder
	for key, v := range properties {
		b.WriteString(key + "=" + v + "\n")
	}
	file = filepath.Join(tempDir(t, "app"), "app.properties")
	if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}
