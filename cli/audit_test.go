package cli

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"github.com/sluice-kafka/sluice/diskless/audit"
	"github.com/sluice-kafka/sluice/diskless/keyring"
	"github.com/sluice-kafka/sluice/diskless/objstore"
)

// emptied is a log whose records retention has removed.
type emptied struct{}

func (emptied) Fetch(context.Context, audit.Log, int64, int32) ([]byte, error) { return nil, nil }
func (emptied) EpochEnd(context.Context, audit.Log, int32) (int32, int64, error) {
	return -1, -1, nil
}

// An object without a lock says whose a store is: who deletes it must not hide
// the archive by that.
func TestAuditVerifyWithoutTheMarker(t *testing.T) {
	objects := filepath.Join(t.TempDir(), "objects")
	file := settings{kafka: []string{deadAddress(t)}, store: `{ url: "file://` + objects + `" }`}.file(t)
	if code, out, errs := sluice(t, "audit", "verify", "-c", file); code != 2 || !strings.Contains(out, "There is no archive in these stores") {
		t.Fatalf("exit code %d: %s%s", code, out, errs)
	}
	store, err := objstore.OpenFile(objects)
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Put(t.Context(), keyring.MarkerKey, []byte(`{"cluster_id":"A"}`)); err != nil {
		t.Fatal(err)
	}
	log := audit.Log{Topic: "audit-a", ID: [16]byte{1}, Start: 5, End: 5}
	if _, err := audit.New(audit.Options{ClusterID: "A", Kafka: emptied{}, Logger: zerolog.Nop()}).Archive(t.Context(), audit.Target{Name: "default", Store: store}, log); err != nil {
		t.Fatal(err)
	}
	if code, out, errs := sluice(t, "audit", "verify", "-c", file); code != 0 || !strings.Contains(out, "All is as it was written") {
		t.Fatalf("exit code %d: %s%s", code, out, errs)
	}
	if err := os.Remove(filepath.Join(objects, filepath.FromSlash(keyring.MarkerKey))); err != nil {
		t.Fatal(err)
	}
	if code, out, errs := sluice(t, "audit", "verify", "-c", file); code != 1 || !strings.Contains(out, "FOUND    "+keyring.MarkerKey) || !strings.Contains(out, "audit-a") {
		t.Errorf("exit code %d: %s%s", code, out, errs)
	}
	if code, out, errs := sluice(t, "audit", "export", "audit-a", "-c", file, "-o", t.TempDir()); code == 0 || !strings.Contains(errs, keyring.MarkerKey) {
		t.Errorf("exit code %d: %s%s", code, out, errs)
	}
}
