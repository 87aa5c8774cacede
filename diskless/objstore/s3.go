package objstore

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/xml"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/sluice-kafka/sluice/turns"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// S3Options say where a bucket is and who we are.
type S3Options struct {
	Endpoint  string // "" is AWS; else http:// or https:// and host[:port]
	Region    string
	Bucket    string
	Prefix    string // without slashes at either end
	AccessKey string // "": the usual AWS sources
	SecretKey string
	PathStyle bool
	// MaxConnections bounds connections to the store; 0 is 64.
	MaxConnections int
	// Lock is put on objects; the zero rule on none.
	Lock LockRule
	// Turns are taken for reading from the store; nil: none.
	Turns *turns.Turns
}

// S3 keeps objects in a bucket, under a prefix.
type S3 struct {
	client *minio.Client
	bucket string
	prefix string
	name   string
	lock   LockRule
}

const (
	awsEndpoint       = "https://s3.amazonaws.com"
	defaultS3Conns    = 64
	s3ResponseTimeout = 30 * time.Second
)

// OpenS3 returns a store; it asks the bucket nothing.
func OpenS3(o S3Options) (*S3, error) {
	endpoint := o.Endpoint
	if endpoint == "" {
		endpoint = awsEndpoint
	}
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" {
		return nil, fmt.Errorf("s3 endpoint %q: want http:// or https:// and host[:port]", endpoint)
	}
	if o.MaxConnections == 0 {
		o.MaxConnections = defaultS3Conns
	}
	creds := credentials.NewStaticV4(o.AccessKey, o.SecretKey, "")
	if o.AccessKey == "" {
		creds = credentials.NewChainCredentials([]credentials.Provider{
			&credentials.EnvAWS{},
			&credentials.FileAWSCredentials{},
			&credentials.IAM{},
		})
	}
	lookup := minio.BucketLookupAuto
	if o.PathStyle {
		lookup = minio.BucketLookupPath
	}
	dialer := &net.Dialer{Timeout: 5 * time.Second, KeepAlive: 15 * time.Second}
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dialer.DialContext(ctx, network, addr)
		if tcp, ok := c.(*net.TCPConn); ok {
			return bodyConn{tcp, o.Turns}, nil
		}
		return c, err
	}
	client, err := minio.New(u.Host, &minio.Options{
		Creds:        creds,
		Secure:       u.Scheme == "https",
		Region:       o.Region,
		BucketLookup: lookup,
		MaxRetries:   1, // Retrying decides
		// Lets a checksum be given; it goes as a header, not as a trailer.
		TrailingHeaders: true,
		Transport: transport{&http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           dial,
			MaxConnsPerHost:       o.MaxConnections,
			MaxIdleConnsPerHost:   o.MaxConnections,
			IdleConnTimeout:       90 * time.Second,
			TLSHandshakeTimeout:   10 * time.Second,
			ResponseHeaderTimeout: s3ResponseTimeout,
			WriteBufferSize:       64 << 10, // small objects go out with their header
			ReadBufferSize:        128 << 10,
			DisableCompression:    true,
		}},
	})
	if err != nil {
		return nil, fmt.Errorf("s3: %w", err)
	}
	s := &S3{client: client, bucket: o.Bucket, name: "s3://" + o.Bucket, lock: o.Lock}
	if o.Prefix != "" {
		s.prefix = strings.Trim(o.Prefix, "/") + "/"
		s.name += "/" + strings.Trim(o.Prefix, "/")
	}
	return s, nil
}

// bodyKey is of a context whose PUT has these bytes as its body.
type bodyKey struct{}

// putBody is a body that can write itself.
type putBody struct{ *bytes.Reader }

func (putBody) Close() error { return nil }

// transport gives PUTs their bodies back, which minio-go wraps in what can only be
// read.
type transport struct{ *http.Transport }

// RoundTrip implements http.RoundTripper.
func (t transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if b, ok := r.Context().Value(bodyKey{}).([]byte); ok && r.Method == http.MethodPut && r.Body != nil && r.ContentLength == int64(len(b)) {
		r = r.WithContext(r.Context()) // a request is its sender's
		r.Body = putBody{bytes.NewReader(b)}
	}
	return t.Transport.RoundTrip(r)
}

// bodyConn is read from in turns. A body may write itself to it: net/http hands bodies
// over with a limit around them, of which net's own takes no more than 32 KiB at a
// time, by way of a buffer of its own. What goes through TLS does not come here.
type bodyConn struct {
	*net.TCPConn
	turns *turns.Turns
}

// Read implements io.Reader.
func (c bodyConn) Read(p []byte) (int, error) {
	if c.turns == nil {
		return c.TCPConn.Read(p)
	}
	return readInTurns(c.TCPConn, p[:min(len(p), turns.Piece)], c.turns)
}

// ReadFrom implements io.ReaderFrom.
func (c bodyConn) ReadFrom(r io.Reader) (int64, error) {
	if l, ok := r.(*io.LimitedReader); ok {
		if body, ok := l.R.(io.WriterTo); ok {
			return body.WriteTo(limitedWriter{c.TCPConn, l})
		}
	}
	return c.TCPConn.ReadFrom(r)
}

// limitedWriter takes no more than a body may have.
type limitedWriter struct {
	io.Writer
	limit *io.LimitedReader
}

func (w limitedWriter) Write(b []byte) (int, error) {
	if int64(len(b)) > w.limit.N {
		return 0, fmt.Errorf("%w: %d bytes, of which the request announced %d", io.ErrShortWrite, len(b), w.limit.N)
	}
	n, err := w.Writer.Write(b)
	w.limit.N -= int64(n)
	return n, err
}

func (s *S3) put(ctx context.Context, key string, body []byte, absent bool) error {
	if err := checkKey(key); err != nil {
		return fmt.Errorf("%v: put %q: %w", s, key, err)
	}
	// The body's integrity is in its CRC-32C, which the store verifies: a
	// fiftieth of the cost of a signed SHA-256.
	sum := binary.BigEndian.AppendUint32(nil, sumOf(ctx, body))
	opts := minio.PutObjectOptions{
		DisableContentSha256: true,
		DisableMultipart:     true,
		UserMetadata:         map[string]string{"x-amz-checksum-crc32c": base64.StdEncoding.EncodeToString(sum)},
		ContentType:          "application/octet-stream",
	}
	if absent {
		opts.SetMatchETagExcept("*")
	}
	if s.lock.Mode != "" && strings.HasPrefix(key, s.lock.Prefix) {
		opts.Mode = minio.RetentionMode(strings.ToUpper(string(s.lock.Mode)))
		opts.RetainUntilDate = time.Now().Add(s.lock.Retention)
	}
	ctx = context.WithValue(ctx, bodyKey{}, body)
	_, err := s.client.PutObject(ctx, s.bucket, s.prefix+key, bytes.NewReader(body), int64(len(body)), opts)
	return s.fault("put", key, err)
}

// Put implements Store.
func (s *S3) Put(ctx context.Context, key string, body []byte) error {
	return s.put(ctx, key, body, false)
}

// PutIfAbsent implements Store.
func (s *S3) PutIfAbsent(ctx context.Context, key string, body []byte) error {
	return s.put(ctx, key, body, true)
}

// Get implements Store.
func (s *S3) Get(ctx context.Context, key string, offset, length int64) ([]byte, error) {
	return s.get(ctx, key, offset, length, "")
}

func (s *S3) get(ctx context.Context, key string, offset, length int64, version string) ([]byte, error) {
	if length == 0 {
		return nil, nil
	}
	opts := minio.GetObjectOptions{VersionID: version}
	switch {
	case length > 0:
		_ = opts.SetRange(offset, offset+length-1)
	case offset > 0:
		_ = opts.SetRange(offset, 0)
	}
	core := minio.Core{Client: s.client}
	r, info, _, err := core.GetObject(ctx, s.bucket, s.prefix+key, opts)
	if err != nil {
		if minio.ToErrorResponse(err).StatusCode == http.StatusRequestedRangeNotSatisfiable {
			return nil, nil
		}
		return nil, s.fault("get", key, err)
	}
	defer r.Close()
	if info.Size < 0 || length > 0 && info.Size > length {
		return nil, fmt.Errorf("%v: get %s: %d bytes came for a range of %d: the store or a proxy before it ignores Range or hides Content-Length", s, key, info.Size, length)
	}
	body := Unzeroed(int(info.Size))[:info.Size] // all is read, or nothing given
	if _, err := io.ReadFull(r, body); err != nil {
		// The answer was cut short: as good as no answer.
		return nil, fmt.Errorf("%v: get %s: %w: %w", s, key, ErrUnavailable, err)
	}
	return body, nil
}

// List implements Store.
func (s *S3) List(ctx context.Context, prefix, startAfter string, fn func(Info) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	opts := minio.ListObjectsOptions{Prefix: s.prefix + prefix, Recursive: true}
	if startAfter != "" {
		opts.StartAfter = s.prefix + startAfter
	}
	for o := range s.client.ListObjects(ctx, s.bucket, opts) {
		if o.Err != nil {
			return s.fault("list", prefix, o.Err)
		}
		if err := fn(Info{strings.TrimPrefix(o.Key, s.prefix), o.Size, o.LastModified}); err != nil {
			return err
		}
	}
	return s.fault("list", prefix, ctx.Err())
}

// Delete implements Store.
func (s *S3) Delete(ctx context.Context, key string) error {
	err := s.fault("delete", key, s.client.RemoveObject(ctx, s.bucket, s.prefix+key, minio.RemoveObjectOptions{}))
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// CanLock implements Locker.
func (s *S3) CanLock(ctx context.Context) error {
	enabled, _, _, _, err := s.client.GetObjectLockConfig(ctx, s.bucket)
	if err == nil && enabled != "Enabled" {
		err = ErrNoLock
	}
	if errors.Is(err, ErrNoLock) {
		return fmt.Errorf("%v: %w", s, err)
	}
	return s.fault("object lock of", s.bucket, err)
}

// Versions implements Locker. Servers differ in the order in which they list
// markers beside versions, so all are gathered first: some 200 bytes each.
func (s *S3) Versions(ctx context.Context, prefix string, fn func(Version) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type listed struct {
		Version
		latest bool
	}
	var all []listed
	for o := range s.client.ListObjects(ctx, s.bucket, minio.ListObjectsOptions{Prefix: s.prefix + prefix, Recursive: true, WithVersions: true}) {
		if o.Err != nil {
			return s.fault("list versions of", prefix, o.Err)
		}
		all = append(all, listed{Version{Info{strings.TrimPrefix(o.Key, s.prefix), o.Size, o.LastModified}, o.VersionID, o.IsDeleteMarker}, o.IsLatest})
	}
	if err := ctx.Err(); err != nil {
		return s.fault("list versions of", prefix, err)
	}
	slices.Reverse(all) // the newest of a key was first
	slices.SortStableFunc(all, func(a, b listed) int {
		// Not by their times: versitygw's change when another version comes on top.
		return cmp.Or(strings.Compare(a.Key, b.Key), cmp.Compare(btoi(a.latest), btoi(b.latest)))
	})
	for _, v := range all {
		if err := fn(v.Version); err != nil {
			return err
		}
	}
	return nil
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// LockOf implements Locker. It looks at a HEAD's answer, where S3 names the lock
// to who may read it (s3:GetObjectRetention): servers differ in how they write the
// answer to the question of its own. That is asked when a HEAD names none, for it
// tells what is not locked from what may not be seen; an answer that cannot be read is
// ErrAccess, too.
func (s *S3) LockOf(ctx context.Context, key, version string) (Lock, error) {
	info, err := s.client.StatObject(ctx, s.bucket, s.prefix+key, minio.StatObjectOptions{VersionID: version})
	if err != nil {
		return Lock{}, s.fault("lock of", key, err)
	}
	mode := info.Metadata.Get("X-Amz-Object-Lock-Mode")
	if mode == "" {
		asked, until, err := s.client.GetObjectRetention(ctx, s.bucket, s.prefix+key, version)
		switch {
		case minio.ToErrorResponse(err).Code == "NoSuchObjectLockConfiguration":
			return Lock{}, nil
		case errors.As(err, new(xml.UnmarshalError)):
			return Lock{}, fmt.Errorf("%v: lock of %s: %w: an answer that S3 does not give: %w", s, key, ErrAccess, err)
		case err != nil:
			return Lock{}, s.fault("lock of", key, err)
		case asked == nil || *asked == "" || until == nil:
			return Lock{}, nil
		}
		return Lock{LockMode(strings.ToLower(string(*asked))), *until}, nil
	}
	until, err := time.Parse(time.RFC3339, info.Metadata.Get("X-Amz-Object-Lock-Retain-Until-Date"))
	if err != nil {
		return Lock{}, fmt.Errorf("%v: lock of %s: %w", s, key, err)
	}
	return Lock{LockMode(strings.ToLower(mode)), until}, nil
}

// SetLock implements Locker. It never asks for governance mode to be bypassed.
func (s *S3) SetLock(ctx context.Context, key, version string, l Lock) error {
	mode := minio.RetentionMode(strings.ToUpper(string(l.Mode)))
	until := l.Until.UTC().Truncate(time.Second) // what all servers can read
	err := s.client.PutObjectRetention(ctx, s.bucket, s.prefix+key, minio.PutObjectRetentionOptions{Mode: &mode, RetainUntilDate: &until, VersionID: version})
	return s.fault("lock", key, err)
}

// GetVersion implements Locker.
func (s *S3) GetVersion(ctx context.Context, key, version string) ([]byte, error) {
	return s.get(ctx, key, 0, -1, version)
}

func (s *S3) String() string { return s.name }

// fault maps S3's errors onto the few kinds.
func (s *S3) fault(op, key string, err error) error {
	if err == nil {
		return nil
	}
	kind := ErrUnavailable
	var answer minio.ErrorResponse
	if errors.As(err, &answer) {
		switch code := answer.StatusCode; {
		case answer.Code == "ObjectLockConfigurationNotFoundError", code == http.StatusBadRequest && strings.Contains(strings.ReplaceAll(answer.Message, " ", ""), "ObjectLock"):
			kind = ErrNoLock
		case answer.Code == minio.NoSuchKey:
			kind = ErrNotFound
		case answer.Code == minio.NoSuchBucket, code == http.StatusNotFound:
			// To create a bucket is not ours; and versitygw says 404 to an
			// access key that it does not know.
			kind = ErrAccess
		case code == http.StatusInsufficientStorage, answer.Code == "QuotaExceeded":
			kind = ErrFull
		case code == http.StatusPreconditionFailed:
			kind = ErrExists
		case code == http.StatusUnauthorized, code == http.StatusForbidden,
			answer.Code == "ExpiredToken", answer.Code == "InvalidToken", answer.Code == "TokenRefreshRequired":
			// AWS says 400 of temporary credentials whose time is over.
			kind = ErrAccess
		case code == http.StatusConflict, code == http.StatusTooManyRequests, code == http.StatusRequestTimeout, answer.Code == "RequestTimeout", code >= 500, code == 0:
			// 409: a conditional PUT raced another; the next try knows. 400 and
			// RequestTimeout: the body was too slow for the store.
		default:
			return fmt.Errorf("%v: %s %s: %w", s, op, key, err)
		}
	}
	return fmt.Errorf("%v: %s %s: %w: %w", s, op, key, kind, err)
}
