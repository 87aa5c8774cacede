package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/sluice-kafka/sluice/config"
	"github.com/sluice-kafka/sluice/router"
	"github.com/sluice-kafka/sluice/upkeep"
)

const fsckHelp = `Walks the topics' logs, straight from the brokers, and resolves every placeholder
as a reader's would be: its signature is verified, its bytes are read from the
object store, and their checksum, count and producer are held against it. Batches
that are in the brokers have their checksums looked at. Damage is named by topic,
partition and range of offsets, with the objects and the remedy. Without --repair
nothing is changed, neither in Kafka nor in a store.

Topics are named by patterns as in the configuration; none is all but internal
ones. Logs are walked to where they end when the run begins. It takes memory for
caches of 256 MiB and the placeholders of 64 MiB, and reads each object about once.

--sample 5% reads the bytes of one object in twenty, always the same ones; all
signatures and logs are looked at. --orphans also lists what a store holds and
nothing refers to, with its age: only with all topics.

Where a store has a lock in the configuration, and all topics are looked at, it is
asked of every object under audit/, or of the sample's, whether it is locked in
that mode for as long as the configuration says; one request for each, eight at a
time. What is not is named.

--repair also holds every object of the stores against its checksums, and makes
anew what other copies prove: segments of WAL objects, WAL objects of segments,
manifests of segments' footers. Only whole, checked bytes are written; nothing is
removed but manifests that lead nowhere; what is below audit/ is never written, but
locked where it is not, or not for long enough, which cannot be taken back in
compliance mode. Then the topics concerned are walked again, and what is named is
what cannot be repaired.
With --dry-run it only says what it would do.

Exit codes: 0 all that was looked at can be read; 1 something is damaged, or not
locked as it should be; 2 nothing of that is known, but not all could be looked at (a broker or store did not
answer, it was interrupted, or the command was called wrongly).`

// Exit codes of commands that look for something.
const (
	exitFound   = 1
	exitUnknown = 2
)

// unknown ends a command with exitUnknown.
func unknown(err error) error { return exitCode{exitUnknown, err} }

func newFsck() *cobra.Command {
	var path, sample, resume, bytesRate string
	var full, orphans, asJSON, repair, dryRun bool
	var fetches float64
	cmd := &cobra.Command{
		Use:   "fsck [TOPIC-PATTERN...]",
		Short: "Prove that every placeholder can be read, and name what cannot",
		Long:  fsckHelp,
		Example: "  sluice fsck -c sluice.yaml\n  sluice fsck -c sluice.yaml 'otel-*' --sample 5%\n" +
			"  sluice fsck -c sluice.yaml --json --resume fsck.state > fsck.json\n  sluice fsck -c sluice.yaml --orphans",
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			opt := upkeep.FsckOptions{Orphans: orphans, State: resume, FetchesPerSecond: fetches}
			err := fsckOptions(&opt, args, sample, bytesRate, full)
			if err == nil && repair && (len(args) > 0 || sample != "" || resume != "") {
				err = errors.New("--repair looks at all topics and all bytes, in one go: no pattern, --sample or --resume goes with it")
			}
			if err == nil && dryRun && !repair {
				err = errors.New("--dry-run is of --repair: without it nothing is changed")
			}
			if err != nil {
				return unknown(usage(cmd, err))
			}
			var how *upkeep.RepairOptions
			if repair {
				how = &upkeep.RepairOptions{DryRun: dryRun, BytesPerSecond: opt.BytesPerSecond}
			}
			report, err := fsck(cmd, path, opt, how)
			if report == nil {
				return unknown(err)
			}
			out := cmd.OutOrStdout()
			if asJSON {
				err = errors.Join(err, printJSON(out, report))
			} else {
				printFsck(out, report)
			}
			switch {
			case len(report.Damage) > 0 || slices.ContainsFunc(report.Fixes, func(f upkeep.Fix) bool { return !f.Done }) || slices.ContainsFunc(report.Locks, func(l upkeep.FsckLocks) bool { return l.Left() > 0 }):
				return exitCode{exitFound, errReported}
			case err != nil && (asJSON || report.Stopped == "" && len(report.Unlooked) == 0):
				return unknown(err)
			case err != nil:
				return unknown(errReported)
			}
			return nil
		},
	}
	configFlag(cmd, &path)
	fl := cmd.Flags()
	fl.StringVar(&sample, "sample", "", "read the bytes of so many objects only, for example 5%")
	fl.BoolVar(&full, "full", false, "read the bytes of all objects; the default")
	fl.BoolVar(&orphans, "orphans", false, "also list what nothing refers to")
	fl.BoolVar(&repair, "repair", false, "make damaged objects anew from other copies, and lock audit objects")
	fl.BoolVar(&dryRun, "dry-run", false, "with --repair: only say what would be done")
	fl.BoolVar(&asJSON, "json", false, "print JSON; its names are stable")
	fl.StringVar(&resume, "resume", "", "keep the run in this file while it is under way, and go on with what it holds")
	fl.StringVar(&bytesRate, "rate", "64MiB", "bytes a second from the stores; 0 is unbounded")
	fl.Float64Var(&fetches, "fetches", 100, "requests a second to the brokers, of up to 1 MiB each; 0 is unbounded")
	cmd.MarkFlagsMutuallyExclusive("sample", "full")
	return cmd
}

func fsckOptions(opt *upkeep.FsckOptions, args []string, sample, bytesRate string, full bool) (err error) {
	if opt.Patterns, err = patterns(args); err != nil {
		return err
	}
	if opt.Orphans && len(args) > 0 {
		return errors.New("--orphans needs all topics: what another topic refers to would seem to be one")
	}
	if sample != "" {
		number, percent := strings.CutSuffix(sample, "%")
		opt.Sample, err = strconv.ParseFloat(number, 64)
		if err != nil || !percent || !(opt.Sample > 0 && opt.Sample <= 100) {
			return fmt.Errorf("--sample %s: write a share such as 5%%", sample)
		}
	}
	if opt.BytesPerSecond, err = byteRate("--rate", bytesRate); err != nil {
		return err
	}
	if !(opt.FetchesPerSecond >= 0) {
		return fmt.Errorf("--fetches %v: it is a number from 0", opt.FetchesPerSecond)
	}
	return nil
}

// patterns of topics, as on a command line.
func patterns(args []string) (out []router.Pattern, err error) {
	for _, a := range args {
		p, err := router.Compile(a)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

func byteRate(flag, text string) (float64, error) {
	n, err := humanize.ParseBytes(text)
	if err != nil {
		return 0, fmt.Errorf("%s %s: write a size such as 64MiB", flag, text)
	}
	return float64(n), nil
}

// fsck also repairs unless how is nil.
func fsck(cmd *cobra.Command, path string, opt upkeep.FsckOptions, how *upkeep.RepairOptions) (*upkeep.FsckReport, error) {
	cfg, err := config.Load(path)
	if err != nil {
		return nil, err
	}
	ctx := cmd.Context()
	access, err := upkeep.Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer access.Close()
	bar := newBar(cmd.ErrOrStderr())
	if bar != nil {
		opt.Progress = func(p upkeep.Progress) {
			text := fmt.Sprintf("%s placeholders, %s read", humanize.Comma(p.Placeholders), humanize.IBytes(uint64(p.Bytes)))
			if p.Damaged > 0 {
				text += fmt.Sprintf(", %s DAMAGED", humanize.Comma(p.Damaged))
			}
			bar.show(p.Done, p.Of, text)
		}
	}
	var report *upkeep.FsckReport
	if how == nil {
		report, err = access.Fsck(ctx, opt)
	} else {
		how.Note = func(f upkeep.Fix) {
			bar.clear()
			fmt.Fprintln(cmd.ErrOrStderr(), fixed(f))
		}
		report, err = access.Mend(ctx, opt, *how)
	}
	bar.clear()
	if errors.Is(err, context.Canceled) && opt.State != "" && report != nil {
		report.Stopped = "interrupted; the same command goes on"
	}
	return report, err
}

// bar is a line that shows how far a command has come, on a terminal. A nil bar
// shows nothing.
type bar struct {
	out   io.Writer
	began time.Time
	first int64
	shown bool
}

func newBar(out io.Writer) *bar {
	f, ok := out.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return nil
	}
	return &bar{out: out, began: time.Now(), first: -1}
}

const barWidth = 24

// show draws the line anew; of what was done before, the time that is left is
// not reckoned.
func (b *bar) show(done, of int64, text string) {
	if b == nil {
		return
	}
	if b.first < 0 {
		b.first = done
	}
	share := 1.0
	if of > 0 {
		share = min(1, float64(done)/float64(of))
	}
	full := int(share * barWidth)
	left := ""
	if since := time.Since(b.began); done > b.first && done < of && since > 2*time.Second {
		left = ", " + (time.Duration(float64(since) * float64(of-done) / float64(done-b.first))).Round(time.Second).String() + " left"
	}
	fmt.Fprintf(b.out, "\r\x1b[K[%s%s] %3.0f %%  %s%s", strings.Repeat("#", full), strings.Repeat(".", barWidth-full), share*100, text, left)
	b.shown = true
}

// say is show where it is not known how much there is to do.
func (b *bar) say(text string) {
	if b != nil {
		fmt.Fprintf(b.out, "\r\x1b[K%s", text)
		b.shown = true
	}
}

func (b *bar) clear() {
	if b != nil && b.shown {
		fmt.Fprint(b.out, "\r\x1b[K")
	}
}

func printFsck(out io.Writer, r *upkeep.FsckReport) {
	partitions := 0
	for _, t := range r.Topics {
		partitions += t.Partitions
	}
	fmt.Fprintf(out, "%d topics, %d partitions, %s batches; of them %s placeholders, which stand for %s records.\n",
		len(r.Topics), partitions, humanize.Comma(r.Batches), humanize.Comma(r.Placeholders), humanize.Comma(r.Records))
	fmt.Fprintf(out, "The bytes of %s placeholders were read (%s) and checked.\n", humanize.Comma(r.Checked), humanize.IBytes(uint64(r.Bytes)))
	if r.Sample < 100 {
		fmt.Fprintf(out, "That is a sample, of %v %% of the objects.\n", r.Sample)
	}
	for _, t := range r.Topics {
		if t.Deleted {
			fmt.Fprintf(out, "Topic %s was deleted meanwhile.\n", t.Topic)
		}
	}
	printFixes(out, r)
	for _, d := range r.Damage {
		fmt.Fprintf(out, "\n%s-%d, offsets %d to %d: %s\n", d.Topic, d.Partition, d.First, d.Last, strings.ReplaceAll(string(d.Kind), "_", " "))
		fmt.Fprintf(out, "  %s of %s; %s\n", counted(d.Placeholders, "placeholder"), counted(d.Records, "record"), d.Detail)
		if len(d.Objects) > 0 {
			more := ""
			if n := d.ObjectCount - len(d.Objects); n > 0 {
				more = fmt.Sprintf(" and %d more", n)
			}
			fmt.Fprintf(out, "  store %s: %s%s\n", d.Store, strings.Join(d.Objects, ", "), more)
		}
		fmt.Fprintf(out, "  remedy: %s\n", d.Remedy)
	}
	for _, u := range r.Unlooked {
		fmt.Fprintf(out, "\n%s-%d from offset %d on was not looked at: %s\n", u.Topic, u.Partition, u.From, u.Error)
	}
	for _, s := range r.Stores {
		printStore(out, s)
	}
	for _, l := range r.Locks {
		printLocks(out, l, r.DryRun)
	}
	switch {
	case r.Stopped != "":
		fmt.Fprintf(out, "\nNot all was looked at: %s.\n", r.Stopped)
	case len(r.Damage) == 0 && len(r.Unlooked) == 0 && r.Sample < 100:
		fmt.Fprintln(out, "\nNo damage in what was looked at.")
	case len(r.Damage) == 0 && len(r.Unlooked) == 0:
		fmt.Fprintln(out, "\nAll of it can be read.")
	}
	if len(r.Damage) > 0 {
		placeholders, records := int64(0), int64(0)
		for _, d := range r.Damage {
			placeholders, records = placeholders+d.Placeholders, records+d.Records
		}
		fmt.Fprintf(out, "\nDAMAGED: %s, %s of %s.\n", counted(int64(len(r.Damage)), "range"), counted(placeholders, "placeholder"), counted(records, "record"))
	}
}

// fixed is a line about one.
func fixed(f upkeep.Fix) string {
	what := map[upkeep.Action]string{upkeep.Rewrite: "write anew", upkeep.Create: "write anew", upkeep.Remove: "remove", upkeep.NoWay: "cannot repair"}[f.Action]
	line := fmt.Sprintf("%-13s  store %s: %s (%s)", what, f.Store, f.Key, f.Damage)
	if f.Why != "" {
		line += ": " + f.Why
	}
	return line
}

func printFixes(out io.Writer, r *upkeep.FsckReport) {
	done, can, not := int64(0), int64(0), int64(0)
	for _, f := range r.Fixes {
		switch {
		case f.Done:
			done++
		case f.Action == upkeep.NoWay:
			not++
		default:
			can++
		}
	}
	if len(r.Fixes) == 0 {
		return
	}
	fmt.Fprintf(out, "\nRepair: %s made good, %d would be, %d cannot be.\n", counted(done, "object"), can, not)
	for _, f := range r.Fixes {
		fmt.Fprintln(out, "  "+fixed(f))
	}
	if !r.DryRun && len(r.Damage) == 0 {
		fmt.Fprintln(out, "All topics concerned were looked at again: no offset is affected.")
	}
}

// fewListed of one kind are for people.
const fewListed = 20

func printStore(out io.Writer, s upkeep.FsckStore) {
	fmt.Fprintf(out, "\nstore %s (%s): %s, %s; %s referred to, %s too young to tell, %s (%s)\n", s.Store, s.Where,
		counted(s.Objects, "object"), humanize.IBytes(uint64(s.Bytes)), humanize.Comma(s.Referenced), humanize.Comma(s.Young), counted(s.Orphans, "orphan"), humanize.IBytes(uint64(s.OrphanBytes)))
	if s.Audit > 0 {
		fmt.Fprintf(out, "  of them under audit/: %s, %s\n", counted(s.Audit, "object"), humanize.IBytes(uint64(s.AuditBytes)))
	}
	if s.Archive > 0 {
		fmt.Fprintf(out, "  archive of audit topics: %s; `sluice audit verify` proves it\n", counted(s.Archive, "object"))
	}
	for i, o := range s.OrphanList {
		if i == fewListed {
			fmt.Fprintf(out, "  ... --json lists up to 1000\n")
			break
		}
		what := fmt.Sprintf("%d batches of %s", o.Batches, some(o.Topics))
		if o.Garbled != "" {
			what = "garbled: " + o.Garbled
		}
		fmt.Fprintf(out, "  orphan %s, %s, %s: %s\n", o.Key, humanize.IBytes(uint64(o.Size)), humanize.Time(o.Modified), what)
	}
	if s.Segments > 0 {
		fmt.Fprintf(out, "  %s, %s, in %s; in none: %d; collected: %d\n", counted(s.Segments, "segment"), humanize.IBytes(uint64(s.SegmentBytes)), counted(s.Windows, "window"), s.UnnamedSegments, s.GoneSegments)
	}
	for _, bad := range s.BadWindows {
		fmt.Fprintf(out, "  %s\n", bad)
	}
	if s.Unknown > 0 {
		fmt.Fprintf(out, "  %s that sluice has not written: %s\n", counted(s.Unknown, "key"), some(s.UnknownList))
	}
}

func printLocks(out io.Writer, l upkeep.FsckLocks, dryRun bool) {
	if l.Unanswered != "" {
		return // that is why the run was stopped
	}
	fmt.Fprintf(out, "\nstore %s (%s): %s under audit/; of them %s to be locked (%s, for %s after being written), and are; older: %s\n",
		l.Store, l.Where, counted(l.Objects, "object"), humanize.Comma(l.Locked), l.Mode, l.Retention, humanize.Comma(l.Ended))
	if l.Unlocked == 0 {
		return
	}
	if l.NoLocks {
		fmt.Fprintln(out, "  the bucket has no object lock")
	}
	for i, u := range l.UnlockedList {
		if i == fewListed {
			fmt.Fprintf(out, "  ... --json lists up to 1000\n")
			break
		}
		is := map[upkeep.LockProblem]string{
			upkeep.NoLock:    "not locked",
			upkeep.ShortLock: fmt.Sprintf("its lock (%s) ends at %s", u.Mode, u.Until.Format(time.RFC3339)),
			upkeep.WeakLock:  fmt.Sprintf("its lock is of %s mode", u.Mode),
		}[u.Problem]
		switch {
		case u.Fixed:
			is = "locked now; it was: " + is
		case u.Why != "":
			is += "; cannot repair: " + u.Why
		}
		fmt.Fprintf(out, "  %s, to be locked until %s: %s\n", u.Key, u.Needs.Format(time.RFC3339), is)
	}
	if l.Left() == 0 {
		fmt.Fprintf(out, "%s locked now.\n", counted(l.Fixed, "audit object"))
		return
	}
	fmt.Fprintf(out, "UNLOCKED: %s.\n", counted(l.Left(), "audit object"))
	if !dryRun && !l.NoLocks && l.Fixed == 0 {
		fmt.Fprintln(out, "  remedy: `sluice fsck --repair` has the store lock what it may; `sluice audit verify` says whether the archive was altered meanwhile")
	}
}

// counted is a number with what it counts.
func counted(n int64, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return humanize.Comma(n) + " " + noun
}
