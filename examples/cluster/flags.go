package main

import (
	"cmp"
	"flag"
	"fmt"
	"io"
	"os"
	"time"
)

// settings are what the flags and the environment say.
type settings struct {
	redis     string // a connection string; empty: start one
	instances int
	duration  time.Duration
	readDelay time.Duration
	products  int
	reads     int // per second
	changes   int // per second
	shared    bool
}

// parseFlags reads the command line. It has told stderr of an error it returns.
func parseFlags(args []string, stderr io.Writer) (settings, error) {
	var s settings
	flags := flag.NewFlagSet("cluster", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&s.redis, "redis", "", "connection `string` of the Redis to use; wins over "+
		redisVariable+"; with neither, one is started in memory")
	flags.IntVar(&s.instances, "instances", 3, "processes to start, 1 to 16")
	flags.DurationVar(&s.duration, "duration", 15*time.Second, "how long to run, up to 1h")
	flags.DurationVar(&s.readDelay, "read-delay", 3*time.Millisecond,
		"what reading the source takes, about; up to 1s")
	flags.IntVar(&s.products, "products", 10_000,
		fmt.Sprintf("products in the catalogue, %d to 1000000", len(categories)))
	flags.IntVar(&s.reads, "reads", 30_000, "reads per second to aim for, of all instances together")
	flags.IntVar(&s.changes, "changes", 25, "changes per second to aim for, up to 1000")
	flags.BoolVar(&s.shared, "shared", false,
		"run twice, the second time with values in Redis, and compare; takes twice the duration, and a real Redis")
	if err := flags.Parse(args); err != nil {
		return s, err
	}

	// Not the flag's default, which -help prints: there may be a password in it.
	given := false
	flags.Visit(func(f *flag.Flag) { given = given || f.Name == "redis" })
	if !given {
		s.redis = os.Getenv(redisVariable)
	}

	err := cmp.Or(
		check(flags.NArg() == 0, "unexpected argument %q", flags.Arg(0)),
		check(1 <= s.instances && s.instances <= 16, "-instances %d is not between 1 and 16", s.instances),
		check(0 < s.duration && s.duration <= time.Hour,
			"-duration %v is not more than 0 and at most 1h", s.duration),
		check(0 <= s.readDelay && s.readDelay <= time.Second,
			"-read-delay %v is not between 0 and 1s", s.readDelay),
		check(len(categories) <= s.products && s.products <= 1_000_000,
			"-products %d is not between %d and 1000000", s.products, len(categories)),
		check(1 <= s.reads && s.reads <= 10_000_000, "-reads %d is not between 1 and 10000000", s.reads),
		check(1 <= s.changes && s.changes <= 1000, "-changes %d is not between 1 and 1000", s.changes),
	)
	if err != nil {
		fmt.Fprintf(stderr, "cluster: %v\n", err)
		flags.Usage()
	}
	return s, err
}

func check(ok bool, format string, args ...any) error {
	if ok {
		return nil
	}
	return fmt.Errorf(format, args...)
}
