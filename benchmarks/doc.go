// Command benchmarks measures nearcache and its peers side by side, and writes a
// report in Markdown with charts. It is a module of its own, so that what it
// compares with is no dependency of the library.
//
//	cd benchmarks && go run .                    # all of it, into results/
//	go run . -quick                              # a short look
//	go run . -only hits,memory -subjects near,otter
//	go run . -traces DIR                         # hit ratios on recorded traces, too
//	go run . -render results/results.json        # the report again, without measuring
//	go run . -render ../docs/bench/results.json -out ../docs/bench -summary ../docs/benchmarks.md
//	go run . -guard                              # seconds; exit code 1 if hits became slow
//
// Each section is measured in rounds. In every round each subject has one short
// turn, in another order each time, so that what else goes on in the machine hits
// all alike; the report has medians over the rounds, and ratios that are medians of
// the ratios within each round.
//
// Where redis-server is installed it starts one of its own. Elsewhere it leaves out
// what needs Redis, and the report says so.
//
// Two commands measure what takes minutes: outage, what an outage of Redis does to
// the source, and probes, what idle instances cost Redis. They need redis-server.
package main
