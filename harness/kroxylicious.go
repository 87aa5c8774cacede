package harness

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Kroxylicious is the release that is compared with. Later ones need a JDK 21.
const Kroxylicious = "0.12.0"

// StartKroxylicious starts that proxy, without filters, before a broker with
// number id, and waits until it listens. It ends with the test.
func StartKroxylicious(t testing.TB, broker string, id int32) (addr string, p *Process) {
	t.Helper()
	cp, err := classpath("kroxylicious", Kroxylicious)
	if err != nil {
		t.Fatal(err)
	}
	classes, err := javaClasses("kroxylicious", cp)
	if err != nil {
		t.Fatal(err)
	}
	dir := tempDir(t, "kroxylicious")
	addr = fmt.Sprintf("127.0.0.1:%d", Ports(t, 2)) // the broker's own is the next one
	file, log := filepath.Join(dir, "proxy.yaml"), filepath.Join(dir, "log")
	text := fmt.Sprintf(`virtualClusters:
  - name: peer
    targetCluster: { bootstrapServers: "%s" }
    gateways:
      - name: default
        portIdentifiesNode:
          bootstrapAddress: "%s"
          nodeIdRanges: [{ name: brokers, start: %d, end: %d }]
`, broker, addr, id, id)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	// As in production, but for compiler threads, which stay: the CPU of those that
	// have ended is in no list of threads.
	p, err = StartProcess("Kroxylicious", log, "java", nil, "-Xmx512m", "-XX:-UseDynamicNumberOfCompilerThreads", "-XX:-UsePerfData",
		"-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", classes+string(os.PathListSeparator)+cp, "Peer", file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if ended, err := p.Ended(); ended {
			t.Errorf("Kroxylicious has ended (%v):\n%s", err, tail(log, 30))
			return
		}
		p.Kill()
	})
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			_ = c.Close()
			return addr, p
		}
		if ended, _ := p.Ended(); ended || time.Now().After(deadline) {
			t.Fatalf("Kroxylicious does not listen: %v\n%s", err, tail(log, 30))
		}
	}
}
