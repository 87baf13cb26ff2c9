// Package benchmarks measures nearcache, side by side with what it is built on.
// It is a module of its own, so that what it compares with is no dependency of
// the library.
//
//	cd benchmarks && go test -bench . -benchtime 2s
//
// Two commands measure what takes minutes: outage, what an outage of Redis does to
// the source, and probes, what idle instances cost Redis. They need redis-server.
//
// Where redis-server is installed the backplane benchmarks start one of their
// own; elsewhere they use miniredis, and say so.
package benchmarks
