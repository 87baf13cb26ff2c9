package model

// Rule is one rule of the protocol, which a scenario can do without.
type Rule uint8

// The rules, in the order of the protocol's description. [Rule.Doc] says what
// each is and what breaks without it.
const (
	// Publishing.

	PublishIsAtomic Rule = iota
	PositionMintedInScript
	PublishNeedsWrite

	// Receiving.

	MessageChain
	AbsentNeverEquals
	ClearOnGap
	GapForgetsFlights
	GapTripsUpdates

	// Probe and lease.

	EchoComparison
	HistoryID
	ClearOnReconnectWithoutHistory
	ProbeIsAtomic
	ProbeNeedsWrite
	MintIfAbsent
	EchoOnSubscription
	LeaseFromSendTime
	ClearBeforeLease

	// The serving rule.

	LeaseReadFirst
	LoadStartIsRegistration
	FlightJoinableByLease

	// The fence.

	FenceKeys
	FenceRegions
	FenceNotFounds
	FenceClears
	FlightForgotten
	NotFoundInEveryRegion

	// Writes.

	LocalPartFirst
	UpdateFenceFirst
	UpdateEndInvalidates
	UpdateStartIsFence

	ruleCount
)

var ruleTexts = [ruleCount]struct{ name, doc string }{
	PublishIsAtomic: {"PublishIsAtomic", "The publish script reads the position, writes the next one and sends " +
		"the message in one step: else two messages follow the same position, and whoever missed one of them accepts the other."},
	PositionMintedInScript: {"PositionMintedInScript", "Each run of the publish script makes a position of its own: " +
		"else a retry brings back one that an instance may have stopped at, and what came in between is missed without notice."},
	PublishNeedsWrite: {"PublishNeedsWrite", "A publish that cannot write the position is refused: " +
		"else a master that was demoted accepts a message, and those who are with the new master never hear of it."},

	MessageChain: {"MessageChain", "A message is applied only if its previous position is the last applied one: " +
		"else the message after a lost one hides the loss."},
	AbsentNeverEquals: {"AbsentNeverEquals", "No position equals no position: " +
		"else an instance that has lost its own and a channel that has lost its own agree, whatever lies in between."},
	ClearOnGap: {"ClearOnGap", "A gap advances the generation, which clears everything that is held: " +
		"else the entry that the missed message was about stays."},
	GapForgetsFlights: {"GapForgetsFlights", "A gap also forgets the loads under way: " +
		"else one that the missed message was about ends after it and is kept."},
	GapTripsUpdates: {"GapTripsUpdates", "A gap also counts as an invalidation of what Updates are under way for: " +
		"else one keeps its value though the missed message was about a newer one."},

	EchoComparison: {"EchoComparison", "An echo's position must be the last applied one: " +
		"else a lease is taken in spite of a message that was missed."},
	HistoryID: {"HistoryID", "An echo's history must be the last known one: " +
		"else a replica that lags becomes master, and its old position hides what was accepted after it."},
	ClearOnReconnectWithoutHistory: {"ClearOnReconnectWithoutHistory", "Where the server does not tell its history, " +
		"the first echo of every subscription clears: else a failover is as invisible as without HistoryID."},
	ProbeIsAtomic: {"ProbeIsAtomic", "A probe reads position and history in one step: " +
		"else a failover in between pairs the new master's old position with the old master's history."},
	ProbeNeedsWrite: {"ProbeNeedsWrite", "A probe that cannot write the position is refused: " +
		"else a master that was demoted renews leases, while invalidations are accepted elsewhere."},
	MintIfAbsent: {"MintIfAbsent", "A probe makes a position if there is none: else, AbsentNeverEquals given, " +
		"every probe of an idle channel clears; the bound itself does not need this rule."},
	EchoOnSubscription: {"EchoOnSubscription", "The echo comes over the subscription, not as the probe's reply: " +
		"else a lease is taken without one, and where the server does not tell its history a failover goes unnoticed meanwhile."},
	LeaseFromSendTime: {"LeaseFromSendTime", "A lease counts from the moment its probe was sent, not from the echo's arrival: " +
		"else what was accepted behind a slow echo is served past the bound."},
	ClearBeforeLease: {"ClearBeforeLease", "An echo that shows a gap clears first and renews the lease then: " +
		"else a Get in between is served what is about to be cleared, under the new lease."},

	LeaseReadFirst: {"LeaseReadFirst", "A Get looks at clock and lease first, and at the entry then: " +
		"else it finds an old entry, and judges it by a lease that was renewed in between."},
	LoadStartIsRegistration: {"LoadStartIsRegistration", "An entry's age counts from the start of its load, not from its end: " +
		"else what a hung load has read long ago counts as fresh."},
	FlightJoinableByLease: {"FlightJoinableByLease", "A Get joins a load only if the serving rule would let it be served the result: " +
		"else a hung load hands what it has read long ago to a new caller."},

	FenceKeys: {"FenceKeys", "A load that an invalidation of its key has overtaken is not kept: " +
		"else the old version is held after the message about it has passed."},
	FenceRegions: {"FenceRegions", "The same for the regions of what the load has read, which are known only at its end."},
	FenceNotFounds: {"FenceNotFounds", "A load that found nothing is not kept if any region was cleared meanwhile: " +
		"else a not-found outlives the clear of the region that the item has come to be in."},
	FenceClears: {"FenceClears", "A load that a clear of its cache has overtaken is not kept."},
	FlightForgotten: {"FlightForgotten", "A Get that starts after an invalidation never joins a load that started before it: " +
		"else the load is not kept but still served."},
	NotFoundInEveryRegion: {"NotFoundInEveryRegion", "A kept not-found is a member of every region: " +
		"else no clear of a region ever evicts it."},

	LocalPartFirst: {"LocalPartFirst", "A write's local part comes before its message is sent: " +
		"else Redis accepts it while this instance, which skips its own messages, still serves the old version."},
	UpdateFenceFirst: {"UpdateFenceFirst", "An Update takes its fence before it writes the source, not when the write has returned: " +
		"else it keeps its value though a newer version was invalidated in between."},
	UpdateEndInvalidates: {"UpdateEndInvalidates", "An Update's end is a local invalidation too: " +
		"else a load that read the source before the write ends after it and is kept."},
	UpdateStartIsFence: {"UpdateStartIsFence", "The age of what an Update keeps counts from its fence: " +
		"else a write that took long yields an old version that counts as fresh."},
}

// String returns the rule's name.
func (r Rule) String() string { return ruleTexts[r].name }

// Doc returns one sentence: the rule, and what goes wrong without it.
func (r Rule) Doc() string { return ruleTexts[r].doc }

// Rules returns all rules.
func Rules() []Rule {
	all := make([]Rule, ruleCount)
	for i := range all {
		all[i] = Rule(i)
	}
	return all
}

// ruleSet is a set of rules.
type ruleSet uint64

func (s ruleSet) has(r Rule) bool { return s&(1<<r) != 0 }
