// Package proxy relays Kafka connections and rewrites the few requests and
// answers in which a client could see that there are two tiers: one file per
// API key, each headed by its versions and what happens to it.
//
// One client connection is one upstream broker connection, answers in request
// order. A request takes three steps, each in order (DESIGN.md, "The life of a
// request"):
//
//	read     the connection's reader takes a frame and decides (reader.go, apis.go)
//	forward  it goes upstream, perhaps after waiting for object storage (pipeline.go)
//	answer   the responder takes the broker's answer and hands it to the client (responder.go)
//
// The package knows the tiers only by the interfaces in ports.go.
package proxy
