package proxy

import "github.com/twmb/franz-go/pkg/kmsg"

// ApiVersions (18), v0–v4: mapped.
//
//   - The answer lists the intersection of what the broker and this proxy
//     speak; keys that the proxy does not know, or hides, are left out.
//   - v5 carries the cluster and node id that the client means to reach
//     (KIP-1242) and is not offered. A version that is not known is answered
//     here with UNSUPPORTED_VERSION in a v0 body that names the range
//     (KIP-511), from which clients choose another.

const apiVersionsKey = 18

const errUnsupportedVersion = 35

func (c *conn) apiVersions(r *request) error {
	r.answer = rewrite(c, r, kmsg.NewPtrApiVersionsResponse, func(resp *kmsg.ApiVersionsResponse) error {
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
		return nil
	})
	return nil
}

func unsupportedAPIVersions(r *request) []byte {
	resp := kmsg.NewPtrApiVersionsResponse()
	resp.ErrorCode = errUnsupportedVersion
	key := kmsg.NewApiVersionsResponseApiKey()
	key.ApiKey, key.MinVersion, key.MaxVersion = apiVersionsKey, r.api.Min, r.api.Max
	resp.ApiKeys = append(resp.ApiKeys, key)
	return encodeAs(0, r, resp)
}
