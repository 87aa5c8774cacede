// Package harness runs the real parts that tests need: Apache Kafka from Maven
// artifacts, an S3 server, Java's own tools and clients, a TCP balancer and a
// TCP proxy that misbehaves on purpose. Only tests import it.
//
// What has to be downloaded or built is kept in .cache at the module's root.
// Nothing is skipped when a part is missing: the test fails and says how to
// get it. Child processes die with the test process, however that ends.
package harness
