package cli

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"sort"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"github.com/sluice-kafka/sluice/config"
	"github.com/sluice-kafka/sluice/diskless/audit"
	"github.com/sluice-kafka/sluice/diskless/keyring"
	"github.com/sluice-kafka/sluice/diskless/objstore"
	"github.com/sluice-kafka/sluice/server"
)

func newAudit() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "The archive of audit topics: bring it up to date, prove it, export from it",
		Long: `The logs of topics with an audit class are archived by every replica (audit.archive)
into objects under the store's lock, in a chain for each partition: each object
names the SHA-256 of the one before it.

archive brings the chains up to the ends of the logs now. verify proves that
nothing was altered, cut out or put in another order. export writes a range of
records as JSON lines, with the objects that prove them; verify --export checks
that anywhere, without store or Kafka.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newAuditArchive(), newAuditVerify(), newAuditExport())
	return cmd
}

func auditLogger(cmd *cobra.Command) zerolog.Logger {
	return zerolog.New(zerolog.ConsoleWriter{Out: cmd.ErrOrStderr(), NoColor: true, TimeFormat: time.TimeOnly}).Level(zerolog.WarnLevel).With().Timestamp().Logger()
}

func newAuditArchive() *cobra.Command {
	var path string
	var once bool
	cmd := &cobra.Command{
		Use:   "archive --once [TOPIC...]",
		Short: "Bring the archive up to the ends of the logs",
		Long: `Archives what the logs of topics with an audit class hold and the archive does
not, and prints how far each partition is. Without TOPIC it is all of them.

It may run beside replicas that archive, and be ended at any time. Exit code 1 when
something could not be archived.`,
		Example: "  sluice audit archive -c sluice.yaml --once",
		RunE: func(cmd *cobra.Command, topics []string) error {
			if !once {
				return usage(cmd, errors.New("replicas archive all the time (audit.archive); here it takes --once"))
			}
			cfg, err := config.Load(path)
			if err != nil {
				return err
			}
			a, err := server.OpenAudit(cmd.Context(), cfg, auditLogger(cmd))
			if err != nil {
				return err
			}
			defer a.Close()
			seen, err := a.Archive(cmd.Context(), topics...)
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "TOPIC\tPARTITION\tARCHIVED UP TO\tLOG ENDS AT")
			for _, s := range seen {
				next := fmt.Sprint(s.Next)
				if s.Err != nil {
					next = "failed: " + strings.ReplaceAll(s.Err.Error(), "\n", "; ")
				}
				fmt.Fprintf(w, "%s\t%d\t%s\t%d\n", s.Log.Topic, s.Log.Partition, next, s.Log.End)
			}
			_ = w.Flush()
			if err == nil {
				err = unknownTopics(topics, func(topic string) bool {
					return slices.ContainsFunc(seen, func(s audit.Seen) bool { return s.Log.Topic == topic })
				}, "the cluster has no topic %s with an audit class")
			}
			return err
		},
	}
	configFlag(cmd, &path)
	cmd.Flags().BoolVar(&once, "once", false, "go over all partitions once, and end")
	return cmd
}

func unknownTopics(topics []string, known func(string) bool, format string) error {
	for _, t := range topics {
		if !known(t) {
			return fmt.Errorf(format, t)
		}
	}
	return nil
}

// verification is what verify prints. The JSON names are stable; an earlier one is
// what --expect reads.
type verification struct {
	Verified time.Time       `json:"verified"`
	Sound    bool            `json:"sound"`
	Manifest string          `json:"manifest_sha256,omitempty"` // of an export
	Chains   []*audit.Report `json:"chains"`
	Findings []audit.Finding `json:"findings,omitempty"` // that are of no chain
	Missing  []string        `json:"missing,omitempty"`  // expected hashes that no object has
	Compared int             `json:"compared_batches,omitempty"`
	Kafka    []audit.Finding `json:"kafka,omitempty"` // where Kafka's log holds something else
}

func newAuditVerify() *cobra.Command {
	var path, export, expectFile string
	var expected []string
	var asJSON, kafka bool
	cmd := &cobra.Command{
		Use:   "verify [TOPIC...]",
		Short: "Prove that nothing in the archive was altered, cut out or put in another order",
		Long: `Reads the archive of all topics, or of some, and checks of every object: that it
names the hash of the one before it, that its batches' CRCs are right, that offsets
go on without a break, and where the store has locks that it is locked as it was to
be and was neither written over nor hidden by a deletion. What Kafka no longer held
when it was archived is listed as a gap: it is said in the chain, and no finding.
It reads the store only, and all of it: that costs GETs and traffic.

A chain without its last objects is a shorter chain, and one that was made anew
from some point on is a chain, too. So keep what this prints where whoever can write
to the store cannot: give the hashes back with --expect-head, or a whole earlier
--json output with --expect, and it proves that what was there then still is.

--kafka also compares every archived batch that Kafka's logs still hold, byte by
byte. --export checks an export instead, without store or Kafka.

Exit code 0 when all is as it was written, 1 when anything is not, 2 when that is
not known: the archive could not be read whole, or there is none.`,
		Example: "  sluice audit verify -c sluice.yaml --json > heads.json\n  sluice audit verify -c sluice.yaml --expect heads.json\n  sluice audit verify --export ./export",
		RunE: func(cmd *cobra.Command, topics []string) error {
			expected, err := readExpected(expected, expectFile, topics)
			if err != nil {
				return unknown(err)
			}
			v := &verification{Verified: time.Now().UTC().Truncate(time.Second)}
			switch {
			case export != "" && (len(topics) > 0 || kafka):
				return unknown(usage(cmd, errors.New("--export checks one folder as a whole, without Kafka")))
			case export != "":
				v.Chains, v.Manifest, err = audit.VerifyExport(export, time.Now())
			default:
				var cfg *config.Config
				if cfg, err = config.Load(path); err == nil {
					err = verifyStores(cmd, cfg, topics, kafka, v)
				}
			}
			if err != nil {
				return unknown(err)
			}
			v.Missing = audit.Missing(v.Chains, expected)
			v.Sound = len(v.Findings)+len(v.Missing)+len(v.Kafka) == 0 && !slices.ContainsFunc(v.Chains, func(r *audit.Report) bool { return len(r.Findings) > 0 })
			if asJSON {
				err = printJSON(cmd.OutOrStdout(), v)
			} else {
				printVerification(cmd.OutOrStdout(), v)
			}
			switch {
			case err != nil:
				return unknown(err)
			case !v.Sound:
				return exitCode{exitFound, errReported}
			case len(v.Chains) == 0:
				return unknown(errReported)
			}
			return nil
		},
	}
	configFlag(cmd, &path)
	f := cmd.Flags()
	f.BoolVar(&asJSON, "json", false, "print JSON")
	f.BoolVar(&kafka, "kafka", false, "also compare with what Kafka still holds")
	f.StringVar(&export, "export", "", "check the export in this folder")
	f.StringSliceVar(&expected, "expect-head", nil, "SHA-256 of an object that was a chain's last; it must still be there")
	f.StringVar(&expectFile, "expect", "", "earlier output of --json: all its chains' ends must still be there")
	return cmd
}

// readExpected returns the hashes to look for: those given, and those of the
// chains' ends in an earlier output, of the topics that are looked at.
func readExpected(hashes []string, file string, topics []string) ([]string, error) {
	for i, h := range hashes {
		hashes[i] = strings.ToLower(h)
		if b, err := hex.DecodeString(h); err != nil || len(b) != 32 {
			return nil, fmt.Errorf("--expect-head %s is no SHA-256: it has 64 hexadecimal digits", h)
		}
	}
	if file == "" {
		return hashes, nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var earlier verification
	if err := json.Unmarshal(data, &earlier); err != nil {
		return nil, fmt.Errorf("--expect %s is no output of `sluice audit verify --json`: %w", file, err)
	}
	before := len(hashes)
	for _, r := range earlier.Chains {
		if r.Head != nil && (len(topics) == 0 || slices.Contains(topics, r.Topic)) {
			hashes = append(hashes, r.Head.SHA256)
		}
	}
	if len(hashes) == before {
		return nil, fmt.Errorf("--expect %s names no end of a chain", file)
	}
	return hashes, nil
}

// lacksMarker is found of a store that holds an archive and does not say whose: what
// may be deleted without a lock must not hide what is locked.
func lacksMarker(v *audit.Verifier, chains int) (audit.Finding, bool) {
	return audit.Finding{Object: keyring.MarkerKey, Offset: -1, Problem: fmt.Sprintf("it is not in store %s any more, which holds an archive; a replica writes it anew when it starts", v.Name)}, v.ClusterID == "" && chains > 0
}

// archives opens the stores, each with the id of the cluster that owns it; "" where
// no cluster does.
func archives(ctx context.Context, cfg *config.Config) ([]*audit.Verifier, error) {
	var all []*audit.Verifier
	for _, name := range slices.Sorted(maps.Keys(cfg.Stores)) {
		st := cfg.Stores[name]
		store, err := server.OpenStore(st, 4)
		if err != nil {
			return nil, fmt.Errorf("store %s: %w", name, err)
		}
		v := &audit.Verifier{Store: store, Name: name, Now: time.Now()}
		if st.Locks() {
			v.Locked = objstore.LockMode(st.Lock)
		}
		body, err := store.Get(ctx, keyring.MarkerKey, 0, -1)
		if errors.Is(err, objstore.ErrNotFound) {
			all = append(all, v) // nothing was ever written there, or see lacksMarker
			continue
		}
		var marker struct {
			ClusterID string `json:"cluster_id"`
		}
		if err == nil {
			err = json.Unmarshal(body, &marker)
		}
		if err != nil {
			return nil, fmt.Errorf("store %s: %s: %w", name, keyring.MarkerKey, err)
		}
		v.ClusterID = marker.ClusterID
		all = append(all, v)
	}
	return all, nil
}

// chainsOf lists a store's chains of some topics, or of all, by topic and
// partition.
func chainsOf(ctx context.Context, v *audit.Verifier, topics []string) (chains []audit.Chain, names map[audit.Chain]string, findings []audit.Finding, err error) {
	names, findings, err = v.Chains(ctx)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("store %s: %w", v.Name, err)
	}
	for c, topic := range names {
		// One whose topic cannot be read may be of any.
		if len(topics) == 0 || topic == "" || slices.Contains(topics, topic) {
			chains = append(chains, c)
		}
	}
	sort.Slice(chains, func(i, j int) bool {
		a, b := chains[i], chains[j]
		if names[a] != names[b] {
			return names[a] < names[b]
		}
		if a.TopicID != b.TopicID {
			return a.String() < b.String()
		}
		return a.Partition < b.Partition
	})
	return chains, names, findings, nil
}

func verifyStores(cmd *cobra.Command, cfg *config.Config, topics []string, kafka bool, v *verification) error {
	ctx := cmd.Context()
	stores, err := archives(ctx, cfg)
	if err != nil {
		return err
	}
	var brokers *server.Audit
	if kafka {
		if brokers, err = server.OpenAudit(ctx, cfg, auditLogger(cmd)); err != nil {
			return err
		}
		defer brokers.Close()
	}
	found := map[string]bool{}
	for _, store := range stores {
		chains, names, findings, err := chainsOf(ctx, store, topics)
		if err != nil {
			return err
		}
		v.Findings = append(v.Findings, findings...)
		if f, lacks := lacksMarker(store, len(chains)); lacks {
			v.Findings = append(v.Findings, f)
		}
		for _, c := range chains {
			r, err := store.Chain(ctx, c)
			if err != nil {
				return fmt.Errorf("store %s: %w", store.Name, err)
			}
			if r.Topic == "" {
				r.Topic = names[c]
			}
			found[r.Topic] = true
			v.Chains = append(v.Chains, r)
			if brokers != nil {
				if err := compareChain(ctx, brokers, store, c, r, v); err != nil {
					return err
				}
			}
		}
	}
	return unknownTopics(topics, func(topic string) bool { return found[topic] }, "no store holds an archive of topic %s")
}

func compareChain(ctx context.Context, brokers *server.Audit, store *audit.Verifier, c audit.Chain, r *audit.Report, v *verification) error {
	logs, err := brokers.Logs(ctx, r.Topic)
	if err != nil {
		return err
	}
	l, ok := logs[c]
	if !ok {
		r.Notes = append(r.Notes, "Kafka has no topic of this id any more: there is nothing to compare with")
		return nil
	}
	again := *store
	again.Each = func(ctx context.Context, h audit.Header, batches []byte) error {
		found, n, err := r.Compare(ctx, brokers.Kafka(), brokers.Tier, l, h, batches)
		v.Kafka, v.Compared = append(v.Kafka, found...), v.Compared+n
		return err
	}
	_, err = again.Chain(ctx, c)
	return err
}

func printVerification(out io.Writer, v *verification) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "TOPIC\tPARTITION\tOBJECTS\tBATCHES\tOFFSETS\tLOCKED UNTIL\tLAST OBJECT\tITS SHA-256")
	for _, r := range v.Chains {
		if r.Partition < 0 {
			continue
		}
		locked, last, hash, offsets := "-", "-", "-", "-"
		if !r.Locked.IsZero() {
			locked = r.Locked.Format(time.DateOnly)
		}
		if r.Head != nil {
			last, hash, offsets = fmt.Sprint(r.Head.Number), r.Head.SHA256, fmt.Sprintf("%d-%d", r.First, r.Head.Next-1)
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%s\t%s\t%s\t%s\n", r.Topic, r.Partition, r.Objects, r.Batches, offsets, locked, last, hash)
	}
	_ = w.Flush()
	where := func(r *audit.Report) string { return fmt.Sprintf("%s-%d", r.Topic, r.Partition) }
	for _, r := range v.Chains {
		for _, g := range r.Gaps {
			fmt.Fprintf(out, "gap      %s: offsets %d to %d are not in the archive: %s\n", where(r), g.From, g.To-1, g.Why)
		}
		for _, c := range r.Rewinds {
			fmt.Fprintf(out, "lost     %s: Kafka has lost offsets %d to %d after they were archived; the archive holds both histories\n", where(r), c.To, c.From-1)
		}
		for _, n := range r.Notes {
			fmt.Fprintf(out, "note     %s: %s\n", where(r), n)
		}
	}
	problem := func(what string, f audit.Finding) {
		at := ""
		if f.Offset >= 0 {
			at = fmt.Sprintf(", offset %d", f.Offset)
		}
		fmt.Fprintf(out, "FOUND    %s%s%s: %s\n", what, f.Object, at, f.Problem)
	}
	for _, r := range v.Chains {
		for _, f := range r.Findings {
			problem(where(r)+": ", f)
		}
	}
	for _, f := range v.Findings {
		problem("", f)
	}
	for _, f := range v.Kafka {
		problem("Kafka differs: ", f)
	}
	for _, h := range v.Missing {
		fmt.Fprintf(out, "FOUND    no object has the SHA-256 %s, which was expected: a chain was cut before it, or made anew\n", h)
	}
	if v.Compared > 0 {
		fmt.Fprintf(out, "\n%d batches were compared with Kafka's logs.\n", v.Compared)
	}
	if v.Manifest != "" {
		fmt.Fprintf(out, "\nThe manifest's SHA-256 is %s.\n", v.Manifest)
	}
	switch {
	case !v.Sound:
		fmt.Fprintln(out, "\nThe archive is NOT as it was written: see FOUND.")
	case len(v.Chains) == 0:
		fmt.Fprintln(out, "\nThere is no archive in these stores: nothing was proven. Is it the right configuration?")
	default:
		fmt.Fprintln(out, "\nAll is as it was written. Keep the last hashes where nobody who can write to the store can: see --expect.")
	}
}

func newAuditExport() *cobra.Command {
	var path, dir, from, to string
	var partitions []int32
	r := audit.Range{}
	cmd := &cobra.Command{
		Use:   "export TOPIC -o DIR",
		Short: "Write records of the archive as JSON lines, with their proof",
		Long: `Writes a range of a topic's archive into a new folder: the records, a line of JSON
each (aborted ones too, and marked), the archive's objects that hold them, and a
manifest with the hash of each file. ` + "`sluice audit verify --export DIR`" + ` proves
anywhere that all belongs together. A range that is not sound is not exported.

Ranges hold their beginning and not their end. Times are RFC 3339, and those of the
records.`,
		Example: "  sluice audit export -c sluice.yaml audit-trades --from 2026-01-01T00:00:00Z --to 2026-02-01T00:00:00Z -o ./january",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 || dir == "" {
				return usage(cmd, errors.New("export takes one topic, and a folder with -o"))
			}
			for _, t := range []struct {
				flag, text string
				into       *time.Time
			}{{"from", from, &r.From}, {"to", to, &r.To}} {
				if t.text == "" {
					continue
				}
				at, err := time.Parse(time.RFC3339, t.text)
				if err != nil {
					return fmt.Errorf("--%s %q is no time: write it as 2026-01-31T00:00:00Z", t.flag, t.text)
				}
				*t.into = at.UTC()
			}
			cfg, err := config.Load(path)
			if err != nil {
				return err
			}
			return exportTopic(cmd, cfg, args[0], partitions, r, dir)
		},
	}
	configFlag(cmd, &path)
	f := cmd.Flags()
	f.StringVarP(&dir, "output", "o", "", "folder to write to; it must be new, or empty")
	f.Int32SliceVar(&partitions, "partition", nil, "only these partitions")
	f.Int64Var(&r.FromOffset, "from-offset", 0, "the first offset")
	f.Int64Var(&r.ToOffset, "to-offset", -1, "the offset behind the last; -1 is the end")
	f.StringVar(&from, "from", "", "the first time")
	f.StringVar(&to, "to", "", "the time behind the last")
	return cmd
}

func exportTopic(cmd *cobra.Command, cfg *config.Config, topic string, partitions []int32, r audit.Range, dir string) error {
	ctx, out := cmd.Context(), cmd.OutOrStdout()
	stores, err := archives(ctx, cfg)
	if err != nil {
		return err
	}
	x := &audit.Exporter{Dir: dir}
	if err := x.Prepare(); err != nil {
		return err
	}
	m := audit.Manifest{Topic: topic, Exported: time.Now().UTC().Truncate(time.Second)}
	found := false
	for _, store := range stores {
		chains, names, _, err := chainsOf(ctx, store, []string{topic})
		if err != nil {
			return err
		}
		x.Verifier = store
		for _, c := range chains {
			if names[c] != topic || len(partitions) > 0 && !slices.Contains(partitions, c.Partition) {
				continue
			}
			if f, lacks := lacksMarker(store, len(chains)); lacks {
				return fmt.Errorf("%s: %s", f.Object, f.Problem)
			}
			found, m.ClusterID = true, store.ClusterID
			p, report, err := x.Chain(ctx, c, r)
			if errors.Is(err, audit.ErrExport) && report != nil {
				printVerification(out, &verification{Chains: []*audit.Report{report}})
			}
			if err != nil {
				return err
			}
			if p == nil {
				fmt.Fprintf(out, "%s-%d (id %s): nothing in the range\n", topic, c.Partition, audit.TopicIDText(c.TopicID))
				continue
			}
			fmt.Fprintf(out, "%s-%d (id %s): %d records, %d objects\n", topic, c.Partition, p.TopicID, p.Records, len(p.Objects))
			m.Partitions = append(m.Partitions, *p)
		}
	}
	if !found {
		return fmt.Errorf("no store holds an archive of topic %s, or of these partitions", topic)
	}
	hash, err := x.Finish(m)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "\nThe SHA-256 of %s is %s: tell it to whoever is to check the export.\n", audit.ManifestName, hash)
	return nil
}
