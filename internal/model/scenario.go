package model

// Scenario is a small world: its instances and writers, what they may do, and how often
// each fault may happen. Check explores every order in which all of that can happen.
type Scenario struct {
	Name string
	Doc  string // what the scenario is about

	Bound int8 // the staleness bound, in ticks
	Until int8 // the last tick

	Instances int      // with a cache: 1 or 2, called A and B
	Writers   []Writer // at most 2
	Budget    Budget

	// Regions are those of each version of the item, as far as they are listed.
	Regions []Region
	// NotFound says of each version that the source has no item then.
	NotFound []bool

	Inbox       int8 // messages that wait for one instance before Redis kicks it; 0: 4
	Cluster     bool // connections outlive a failover
	NoHistory   bool // Redis refuses to tell its history
	NoPosition  bool // the channel has no position at the start, and no instance knows one
	Joiners     bool // a Get can join a load under way
	RacingSets  bool // others write the source while a Set is under way
	SlowReaders bool // a Get may pause between reading the lease and looking up the entry
	Shared      bool // the instances use the shared level
	Lagging     bool // a master is demoted in favour of a replica that lags
	Clones      bool // the instances were resumed from one snapshot, and have one identity
	Hostile     Hostile
	Isolated    bool // a demoted master does not know that it is one, but takes no writes: too few replicas
	Writable    bool // a demoted master takes writes, though it knows that it is a replica

	Needs []Rule  // without any of which the bound breaks here
	Shows []Event // that happen here, in some interleaving

	Limit int // of states, after which Check gives up; 0: none

	without ruleSet
}

// Without returns the scenario with some rules switched off.
func (s Scenario) Without(rules ...Rule) Scenario {
	for _, r := range rules {
		s.without |= 1 << r
	}
	return s
}

// Writer is a caller that makes one write after the other.
type Writer struct {
	// Home is the instance in which it runs: 0 is A, 1 is B. Elsewhere is a
	// process that only publishes.
	Home int8
	// Does are the kinds of its writes.
	Does []Op
}

// Elsewhere is the home of a writer in a process without a cache.
const Elsewhere int8 = -1

// Op is a kind of write.
type Op uint8

// The kinds of writes, each after a change of the item that is watched, except
// RemoveOther, which is for another item. An Update makes the change itself.
const (
	Remove Op = iota
	Set       // at home in an instance, like Update
	Update
	ClearRegionR // of the region R
	ClearRegionS // of the region S
	Clear        // of the whole cache
	ClearAll     // of all caches
	RemoveOther  // matters for its place in the chain
)

var ops = [...]struct {
	name  string
	names target
}{
	Remove:       {"Remove", theItem},
	Set:          {"Set", theItem},
	Update:       {"Update", theItem},
	ClearRegionR: {"ClearRegion(R)", regionR},
	ClearRegionS: {"ClearRegion(S)", regionS},
	Clear:        {"Clear", wholeCache},
	ClearAll:     {"ClearAll", wholeCache},
	RemoveOther:  {"Remove of another item", 0},
}

// String returns the call's name.
func (o Op) String() string { return ops[o].name }

// Region is a set of regions.
type Region uint8

// The regions, and an item's membership in none.
const (
	NoRegion Region = 0
	R               = Region(regionR)
	S               = Region(regionS)
)

// Budget says how often each thing may happen at most.
type Budget struct {
	Writes int8 // by all writers together
	Loads  int8
	Probes int8

	Drops       int8 // of one instance's connection
	Failovers   int8 // to a replica, which may lag
	Demotions   int8 // failovers that leave the instances with the old master, which takes no more writes
	Restarts    int8 // of Redis, with nothing in it
	Evictions   int8 // of the position's key
	Retakes     int8 // the script that takes a token runs twice, the second time late
	Extensions  int8 // of the claim of a load, each at any time from then on
	Losses      int8 // of the shared level's value, token or clears, by eviction or expiry
	Displaced   int8 // entries of an instance, which make room for others
	LostReplies int8 // Redis ran the script, and the reply is lost
	Delays      int8 // the publisher gives up a script that will run later
	BusLosses   int8 // a message does not reach one instance
	Reorders    int8 // two messages to one instance change places
	Garbage     int8 // undecodable messages
	Forgeries   int8 // messages to one instance by a hostile user
}

// Hostile is a user of Redis that may publish, and forges messages.
type Hostile uint8

// The kinds of hostile users, and that there is none.
const (
	Nobody Hostile = iota
	// OnOwnChannels may publish to the instances' own channels, and knows position
	// and history, but no nonce.
	OnOwnChannels
	// OnChannel may publish to the channel, and knows the nonces of the probes under
	// way.
	OnChannel
	// Messages is the same, and forges invalidations.
	Messages
)
