// Command probes measures what the probes of instances that do nothing else cost
// Redis: the difference between two INFOs of a Redis of its own.
//
//	go run ./probes -help
package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/nearcache/nearcache"
	"github.com/nearcache/nearcache/benchmarks/internal/measure"
)

// settle is how long instances are left alone before they are measured.
const settle = 2 * time.Second

func main() {
	instances := flag.String("instances", "0,1,10,100", "how many, all in this process; 0 is Redis by itself")
	staleness := flag.String("staleness", "5s,1s", "MaxStaleness")
	length := flag.Duration("length", 20*time.Second, "how long to measure each")
	runs := flag.Int("runs", 1, "runs; the table has their medians, lowest and highest")
	flag.Parse()
	counts, err := list(*instances, strconv.Atoi)
	lives, wrong := list(*staleness, time.ParseDuration)
	if err = cmp.Or(err, wrong); err == nil {
		err = measureAll(counts, lives, *length, *runs)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "probes:", err)
		os.Exit(1)
	}
}

func list[T any](text string, parse func(string) (T, error)) (values []T, err error) {
	for field := range strings.SplitSeq(text, ",") {
		v, wrong := parse(field)
		values, err = append(values, v), cmp.Or(err, wrong)
	}
	return values, err
}

// columns are what is printed of the difference between two INFOs, per second.
var columns = []struct {
	title    string
	field    string
	scale    float64
	decimals int
}{
	{"EVALSHA/s", "cmdstat_evalsha", 1, 2},
	{"echoes/s (PUBLISH)", "cmdstat_publish", 1, 2},
	{"all commands/s, those of the script too", "total_commands_processed", 1, 1},
	{"bytes in/s", "total_net_input_bytes", 1, 0},
	{"bytes out/s", "total_net_output_bytes", 1, 0},
	{"CPU of Redis, ms/s", "used_cpu", 1000, 2},
}

func measureAll(counts []int, lives []time.Duration, length time.Duration, runs int) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	fmt.Print("| instances | MaxStaleness | connections |")
	for _, c := range columns {
		fmt.Printf(" %s |", c.title)
	}
	fmt.Println("\n|" + strings.Repeat("---|", 3+len(columns)))
	for _, life := range lives {
		for _, n := range counts {
			found := map[string][]float64{}
			for range runs {
				rates, err := run(ctx, n, life, length)
				if err != nil {
					return err
				}
				for field, rate := range rates {
					found[field] = append(found[field], rate)
				}
			}
			fmt.Printf("| %d | %v | %s |", n, life, measure.Spread(found["connected_clients"], 0))
			for _, c := range columns {
				rates := found[c.field]
				for i := range rates {
					rates[i] *= c.scale
				}
				fmt.Printf(" %s |", measure.Spread(rates, c.decimals))
			}
			fmt.Println()
		}
	}
	return nil
}

// run measures n instances. It returns by how much each field of INFO grows in a
// second, and as connected_clients how many connections the instances have.
func run(ctx context.Context, n int, life, length time.Duration) (map[string]float64, error) {
	server, err := measure.StartServer()
	if err != nil {
		return nil, err
	}
	defer server.Kill()
	for range n {
		bp, err := nearcache.Connect(ctx, nearcache.BackplaneOptions{
			RedisConnectionString: server.Addr,
			MaxStaleness:          life,
			Logger:                slog.New(slog.DiscardHandler),
		})
		if err != nil {
			return nil, err
		}
		defer bp.Close()
	}
	client := redis.NewClient(&redis.Options{Addr: server.Addr})
	defer client.Close()
	if err := wait(ctx, settle, client.Ping(ctx).Err()); err != nil {
		return nil, err
	}

	before, reply, err := info(ctx, client)
	start := time.Now()
	if err := wait(ctx, length, err); err != nil {
		return nil, err
	}
	after, _, err := info(ctx, client)
	if err != nil {
		return nil, err
	}
	seconds := time.Since(start).Seconds()
	rates := map[string]float64{}
	for field := range after {
		rates[field] = (after[field] - before[field]) / seconds
	}
	// The first INFO's own reply and call fall between the two.
	rates["total_net_output_bytes"] -= float64(reply) / seconds
	rates["total_commands_processed"] -= 1 / seconds
	rates["connected_clients"] = after["connected_clients"] - 1 // without this one
	return rates, nil
}

// wait returns err, or ctx's error if that ends before length has passed.
func wait(ctx context.Context, length time.Duration, err error) error {
	if err != nil {
		return err
	}
	select {
	case <-time.After(length):
	case <-ctx.Done():
	}
	return ctx.Err()
}

// info returns the numbers of INFO by their names: of commands the calls, and as
// used_cpu the seconds of user and system together. length is that of the reply.
func info(ctx context.Context, client *redis.Client) (numbers map[string]float64, length int, err error) {
	text, err := client.Info(ctx, "all").Result()
	numbers = map[string]float64{}
	for _, c := range columns {
		numbers[c.field] = 0 // a command that was never called is not in INFO
	}
	for line := range strings.Lines(text) {
		field, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		value, _, _ = strings.Cut(strings.TrimPrefix(value, "calls="), ",")
		if number, err := strconv.ParseFloat(value, 64); err == nil {
			numbers[field] = number
		}
	}
	numbers["used_cpu"] = numbers["used_cpu_user"] + numbers["used_cpu_sys"]
	return numbers, len(text), err
}
