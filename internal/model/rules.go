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
	PublishNeedsMaster

	// Receiving.

	MessageChain
	MessageFromChannel
	OwnByNonce
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
	ProbeNeedsMaster
	MintIfAbsent
	EchoOnSubscription
	EchoOfProbe
	EchoFromOwnChannel
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
	WaiterNeedsProof
	ProofAtEnd
	WaiterSharesLater

	// Writes.

	LocalPartFirst
	UpdateFenceFirst
	UpdateEndInvalidates
	UpdateStartIsFence

	// The shared level: what is put there.

	PutNeedsToken
	TokenIsOwn
	TokenMadeInScript
	EpochMadeInScript
	ExtensionMakesNoToken
	ExtensionOfOwnToken
	StampedWithToken
	InvalidationDeletesToken
	DeleteIsPublish

	// The shared level: what is valid there.

	ClearsChecked
	SharedNotFoundIsLatest
	EpochChecked
	RegionsReadWithEpoch
	ProbeDropsClears

	// The shared level: which reads count.

	SharedFromMaster
	SharedOfLeaseHistory
	SharedNeedsHistory
	HistoryNotedFirst
	ServerCheckedLast
	RegionsReadCounts
	SharedNeedsLease
	SharedAgeFromLease

	// The shared level: own writes.

	OwnWritesFirst

	ruleCount
)

var ruleTexts = [ruleCount]struct{ name, doc string }{
	PublishIsAtomic: {"PublishIsAtomic", "The publish script reads the position, writes the next one and sends " +
		"the message in one step: else two messages follow the same position, and whoever missed one of them accepts the other."},
	PositionMintedInScript: {"PositionMintedInScript", "Each run of the publish script makes a position of its own: " +
		"else a retry brings back one that an instance may have stopped at, and what came in between is missed without notice."},
	PublishNeedsWrite: {"PublishNeedsWrite", "A publish that cannot write the position is refused: " +
		"else a master that was demoted accepts a message, and those who are with the new master never hear of it."},
	PublishNeedsMaster: {"PublishNeedsMaster", "The same on a server that says it is a replica, even if it takes writes: " +
		"else it accepts a message that nobody but its own subscribers hears."},

	MessageChain: {"MessageChain", "A message is applied only if its previous position is the last applied one: " +
		"else the message after a lost one hides the loss."},
	MessageFromChannel: {"MessageFromChannel", "An invalidation counts only if it came on the channel, not on an instance's own: " +
		"else a user that may publish only echoes forges the message that an instance has missed, and hides the loss."},
	OwnByNonce: {"OwnByNonce", "An instance passes over a message only if its position was made of a nonce that the instance sent itself: " +
		"else two that were resumed from one snapshot, and have one identity, pass over each other's."},
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
	ProbeNeedsMaster: {"ProbeNeedsMaster", "A probe is refused by a server that says it is a replica, even if it takes writes: " +
		"else one whose replication is stalled renews leases with its master's position and history of long ago."},
	MintIfAbsent: {"MintIfAbsent", "A probe makes a position if there is none: else, AbsentNeverEquals given, " +
		"every probe of an idle channel clears; the bound itself does not need this rule."},
	EchoOnSubscription: {"EchoOnSubscription", "The echo comes over the subscription, not as the probe's reply: " +
		"else a lease is taken without one, and where the server does not tell its history a failover goes unnoticed meanwhile."},
	EchoOfProbe: {"EchoOfProbe", "An echo counts only if its nonce is that of a probe under way, which cannot be guessed: " +
		"else a user that may publish echoes forges one, which says that nothing was missed."},
	EchoFromOwnChannel: {"EchoFromOwnChannel", "An echo counts only if it came on the instance's own channel: " +
		"else a user that may publish only invalidations, but sees what others send, forges the echo of a probe under way."},
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

	WaiterNeedsProof: {"WaiterNeedsProof", "A Get that finds a load from before the clear of a region waits for it, and has its result only if " +
		"none of the result's regions was cleared since the load began: else it is served what was cleared before the Get started."},
	ProofAtEnd: {"ProofAtEnd", "That is decided when the load ends, in the step that takes it out: " +
		"else a clear comes in between, and so does a Get that starts after it and waits."},
	WaiterSharesLater: {"WaiterSharesLater", "Otherwise it shares a load that began after the Get started to wait: " +
		"else it has the result of one that is older still than the load that it may not have."},

	LocalPartFirst: {"LocalPartFirst", "A write's local part comes before its message is sent: " +
		"else Redis accepts it while this instance, which skips its own messages, still serves the old version."},
	UpdateFenceFirst: {"UpdateFenceFirst", "An Update takes its fence before it writes the source, not when the write has returned: " +
		"else it keeps its value though a newer version was invalidated in between."},
	UpdateEndInvalidates: {"UpdateEndInvalidates", "An Update's end is a local invalidation too: " +
		"else a load that read the source before the write ends after it and is kept."},
	UpdateStartIsFence: {"UpdateStartIsFence", "The age of what an Update keeps counts from its fence: " +
		"else a write that took long yields an old version that counts as fresh."},

	PutNeedsToken: {"PutNeedsToken", "A load puts what it has read only if its token is still there: " +
		"else a slow one puts an old version behind the invalidation that was to delete it."},
	TokenIsOwn: {"TokenIsOwn", "The token must be its own, not any: " +
		"else a slow load puts an old version by the token of the load that came after the invalidation."},
	TokenMadeInScript: {"TokenMadeInScript", "Each run of the script that takes a token makes one of its own: " +
		"else its second run, after a lost reply, brings back the token that an invalidation has deleted, and a slow load puts an old version."},
	EpochMadeInScript: {"EpochMadeInScript", "The same for the epoch that it makes if there is none: " +
		"else its second run brings back the one that ClearAll has ended, and with it the values of that."},
	ExtensionMakesNoToken: {"ExtensionMakesNoToken", "The script that extends a claim sets no token where there is none: " +
		"else it comes late and brings back the token that an invalidation has deleted, and a slow load puts an old version."},
	ExtensionOfOwnToken: {"ExtensionOfOwnToken", "It extends only the token that it is meant for: " +
		"else it comes late and replaces the token of the load that came after the invalidation, and a slow load puts an old version by it."},
	StampedWithToken: {"StampedWithToken", "A value is stamped with the epoch and the count as they were when its token was taken, not when it is put: " +
		"else a slow load's old version passes for one that was read after the clear."},
	InvalidationDeletesToken: {"InvalidationDeletesToken", "An invalidation deletes the token too, not only the value: " +
		"else a load that is under way puts the old version after it."},
	DeleteIsPublish: {"DeleteIsPublish", "An invalidation is published and the value deleted in one step: " +
		"else an instance that has evicted it reads it again in between, and no message is left that would evict it."},

	ClearsChecked: {"ClearsChecked", "A value is valid only if neither its cache nor one of its regions was cleared since its stamp: " +
		"else a clear, which deletes no values, is none at the shared level."},
	SharedNotFoundIsLatest: {"SharedNotFoundIsLatest", "A not-found is valid only if there was no clear at all since its stamp: " +
		"else it outlives the clear of the region that the item has come to be in."},
	EpochChecked: {"EpochChecked", "A value is valid only in the epoch of its stamp: " +
		"else the hash of the clears is lost, counting starts anew, and what was cleared is valid again."},
	RegionsReadWithEpoch: {"RegionsReadWithEpoch", "If the regions' clears are read by a command of their own, it reads the epoch once more: " +
		"else the hash is lost between the two, and there was no clear as it seems."},
	ProbeDropsClears: {"ProbeDropsClears", "A probe that finds clears of another history than the server's deletes them, which ends their epoch: " +
		"else a replica that lags becomes master and brings back what was invalidated, for those who know its history."},

	SharedFromMaster: {"SharedFromMaster", "A read counts only if the server says that it is a master: " +
		"else one that was demoted answers, and lags behind the new master whose history it has."},
	SharedOfLeaseHistory: {"SharedOfLeaseHistory", "A read counts only if the server's history is that of the instance's last echo: " +
		"else a replica that lags becomes master, and what it brings back is read before the first probe there."},
	SharedNeedsHistory: {"SharedNeedsHistory", "Where the server does not tell its history, the shared level is not used: " +
		"else a failover is as invisible as without SharedOfLeaseHistory."},
	HistoryNotedFirst: {"HistoryNotedFirst", "That history and the lease are noted before the read is sent, not compared when its answer comes: " +
		"else the first probe's echo overtakes the answer, and what was read before the probe seems to be from after it."},
	ServerCheckedLast: {"ServerCheckedLast", "The server tells its role and history after the value and the clears, on one connection: " +
		"else it is demoted in between, and answers with what a new master that lagged has made it a copy of."},
	RegionsReadCounts: {"RegionsReadCounts", "If the regions' clears are read by a command of their own, the server tells its role and history once more: " +
		"else there is a failover between the two, and the new master does not know of the clear."},
	SharedNeedsLease: {"SharedNeedsLease", "The shared level is read only under a lease: " +
		"else a master that is cut off and takes no writes, but does not know that it was demoted, answers for ever."},
	SharedAgeFromLease: {"SharedAgeFromLease", "The age of what was read at the shared level counts from the lease that it was read under: " +
		"else such a master's old version, read late under a lease, counts as fresh when that has expired."},

	OwnWritesFirst: {"OwnWritesFirst", "A load does without the shared level while a write of its own instance is not known to be accepted: " +
		"else it reads the old version there after the write's local part, and the instance passes over its own message."},
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
