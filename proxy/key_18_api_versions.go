package proxy

import (
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluice-kafka/sluice/proxy/wire"
)

// ApiVersions (18), v0–v4: mapped.
//
//   - The answer lists the intersection of what the broker and this proxy
//     speak; keys that the proxy does not know, or hides, are left out.
//   - A broker that does not know the client's version answers in v0, whatever
//     was asked (KIP-511); so does this proxy, with the versions of both.
//   - v5 carries the cluster and node id that the client means to reach
//     (KIP-1242) and is not offered. A version that is not known is answered
//     here with UNSUPPORTED_VERSION in a v0 body that names the range
//     (KIP-511), from which clients choose another.

const apiVersionsKey = 18

const errUnsupportedVersion = 35

func (c *conn) apiVersions(r *request) error {
	r.answer = (*conn).apiVersionsAnswer
	return nil
}

func (c *conn) apiVersionsAnswer(r *request, in *frame) ([][]byte, error) {
	version := r.version
	at := wire.Reader{B: in.b, Off: wire.SizePrefix + 4}
	if at.Int16() == errUnsupportedVersion { // in the same place in every version
		version = 0
	}
	resp := kmsg.NewPtrApiVersionsResponse()
	if err := decodeAs(version, r, in, resp); err != nil {
		return nil, err
	}
	c.learnVersions(resp)
	kept := resp.ApiKeys[:0]
	for _, k := range resp.ApiKeys {
		api := c.p.apis.find(k.ApiKey)
		if api == nil {
			continue
		}
		k.MinVersion, k.MaxVersion = max(k.MinVersion, api.Min), min(k.MaxVersion, api.Max)
		if k.MinVersion <= k.MaxVersion {
			kept = append(kept, k)
		}
	}
	resp.ApiKeys = kept
	return [][]byte{encodeAs(version, r, resp)}, nil
}

func unsupportedAPIVersions(r *request) []byte {
	resp := kmsg.NewPtrApiVersionsResponse()
	resp.ErrorCode = errUnsupportedVersion
	key := kmsg.NewApiVersionsResponseApiKey()
	key.ApiKey, key.MinVersion, key.MaxVersion = apiVersionsKey, r.api.Min, r.api.Max
	resp.ApiKeys = append(resp.ApiKeys, key)
	return encodeAs(0, r, resp)
}
