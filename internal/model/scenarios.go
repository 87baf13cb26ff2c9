package model

// Scenarios returns all scenarios in which the protocol holds.
func Scenarios() []Scenario {
	removes := []Writer{{Elsewhere, []Op{Remove}}}
	changes := []Writer{{Elsewhere, []Op{Remove, RemoveOther}}}
	clears := []Writer{{Elsewhere, []Op{ClearRegionR, ClearRegionS}}}
	return append([]Scenario{
		{
			Name: "a dropped connection",
			Doc:  "An instance misses messages while it is cut off, and comes back warm if there were none.",

			Bound: 1, Until: 2, Instances: 1, Writers: changes,
			Budget: Budget{Writes: 2, Loads: 1, Probes: 2, Drops: 1},
			Needs:  []Rule{MessageChain, EchoComparison, ClearOnGap, LeaseFromSendTime, ClearBeforeLease},
			Shows:  []Event{ServedByLease, ServedByAge, WarmReconnect, LateEcho, GapCleared},
		},
		{
			Name: "a slow consumer",
			Doc:  "Redis disconnects an instance for which more than one message is waiting.",

			Bound: 1, Until: 2, Instances: 1, Inbox: 1,
			Writers: []Writer{changes[0], changes[0]},
			Budget:  Budget{Writes: 3, Loads: 1, Probes: 1},
			Shows:   []Event{Kicked, WarmReconnect, GapCleared},
		},
		{
			Name: "failover to a lagging replica",
			Doc:  "The new master has an older position, and nobody is left who could send what was accepted after it.",

			Bound: 1, Until: 2, Instances: 1, Writers: changes,
			Budget: Budget{Writes: 2, Loads: 1, Probes: 1, Failovers: 1},
			Needs:  []Rule{HistoryID, ProbeIsAtomic},
			Shows:  []Event{GapCleared, LateEcho},
		},
		{
			Name: "failover in a cluster",
			Doc:  "The same, but subscriptions stay, and messages between the nodes are lost or overtake one another.",

			Bound: 1, Until: 1, Instances: 1, Writers: changes, Cluster: true,
			Budget: Budget{Writes: 2, Loads: 1, Probes: 1, Failovers: 1, BusLosses: 1, Reorders: 1},
			Needs:  []Rule{HistoryID, ProbeIsAtomic, MessageChain},
			Shows:  []Event{GapCleared},
		},
		{
			Name: "no history",
			Doc:  "Redis does not tell its history, so that only a subscription that was never interrupted can be trusted.",

			Bound: 1, Until: 2, Instances: 1, Writers: removes, NoHistory: true,
			Budget: Budget{Writes: 2, Loads: 1, Probes: 1, Failovers: 1, Drops: 1},
			Needs:  []Rule{ClearOnReconnectWithoutHistory, EchoOnSubscription},
			Shows:  []Event{ServedByLease, GapCleared},
		},
		{
			Name: "a demoted master",
			Doc: "After a failover, the instance and a writer may still be connected to the old master, which takes no writes, " +
				"but does not say that it is a replica.",

			Bound: 1, Until: 1, Instances: 1, Writers: changes, Isolated: true,
			Budget: Budget{Writes: 2, Loads: 1, Probes: 2, Demotions: 1},
			Needs:  []Rule{PublishNeedsWrite, ProbeNeedsWrite},
			Shows:  []Event{Refused, GapCleared},
		},
		{
			Name: "a replica that takes writes",
			Doc:  "The same with an old master that says that it is a replica, and takes writes all the same.",

			Bound: 1, Until: 1, Instances: 1, Writers: changes, Writable: true,
			Budget: Budget{Writes: 2, Loads: 1, Probes: 2, Demotions: 1},
			Needs:  []Rule{PublishNeedsMaster, ProbeNeedsMaster},
			Shows:  []Event{Refused, GapCleared},
		},
		{
			Name: "a restart",
			Doc:  "Redis comes back with nothing in it, or loses the position alone.",

			Bound: 1, Until: 2, Instances: 1, Writers: removes,
			Budget: Budget{Writes: 1, Loads: 2, Probes: 2, Restarts: 1, Evictions: 1},
			Shows:  []Event{PositionMinted, GapCleared, ServedByLease},
		},
		{
			Name: "a lost position",
			Doc:  "Something undecodable makes the instance lose its position, and Redis evicts its own.",

			Bound: 1, Until: 1, Instances: 1, Writers: changes,
			Budget: Budget{Writes: 2, Loads: 1, Probes: 1, Evictions: 1, Garbage: 1, BusLosses: 1},
			Needs:  []Rule{AbsentNeverEquals},
			Shows:  []Event{PositionMinted, GapCleared},
		},
		{
			Name: "forged echoes",
			Doc: "A hostile user publishes to an instance's own channel what says that nothing was missed, " +
				"while it is cut off or a message is lost.",

			Bound: 1, Until: 2, Instances: 1, Writers: removes, Hostile: OnOwnChannels,
			Budget: Budget{Writes: 1, Loads: 1, Probes: 1, Drops: 1, BusLosses: 1, Forgeries: 2},
			Needs:  []Rule{EchoOfProbe, MessageFromChannel},
			Shows:  []Event{ForgeryIgnored, GapCleared, WarmReconnect},
		},
		{
			Name: "forged echoes on the channel",
			Doc:  "The same by one who may not publish there, but knows the nonces of the probes under way.",

			Bound: 1, Until: 2, Instances: 1, Writers: removes, Hostile: OnChannel,
			Budget: Budget{Writes: 1, Loads: 1, Probes: 2, Drops: 1, BusLosses: 1, Forgeries: 2},
			Needs:  []Rule{EchoFromOwnChannel},
			Shows:  []Event{ForgeryIgnored, GapCleared, WarmReconnect},
		},
		{
			Name: "an idle channel",
			Doc:  "Nobody has ever written, and the instance starts with neither position nor lease.",

			Bound: 1, Until: 3, Instances: 1, NoPosition: true,
			Budget: Budget{Loads: 2, Probes: 2, Drops: 1},
			Shows:  []Event{PositionMinted, ServedByLease, WarmReconnect},
		},
		{
			Name: "a lost reply",
			Doc:  "A publisher cannot know whether its script ran, and sends it again; the first may run late.",

			Bound: 1, Until: 1, Instances: 1,
			Writers: []Writer{changes[0], changes[0]},
			Budget:  Budget{Writes: 2, Loads: 1, Probes: 1, Drops: 1, LostReplies: 1, Delays: 1},
			Needs:   []Rule{PositionMintedInScript, PublishIsAtomic},
			Shows:   []Event{AcceptedTwice, WarmReconnect},
		},
		{
			Name: "a slow reader",
			Doc:  "A Get is held up between its look at the lease and its look at the entry.",

			Bound: 1, Until: 2, Instances: 1, Writers: removes, SlowReaders: true,
			Budget: Budget{Writes: 1, Loads: 1, Probes: 2, Drops: 1},
			Needs:  []Rule{LeaseReadFirst, ClearBeforeLease},
			Shows:  []Event{SlowHit, WarmReconnect},
		},
		{
			Name: "a load against an invalidation",
			Doc:  "A load begins before an invalidation and ends after it, and others want to join it.",

			Bound: 1, Until: 2, Instances: 1, Writers: removes, Joiners: true,
			Budget: Budget{Writes: 2, Loads: 2, Probes: 1},
			Needs:  []Rule{FenceKeys, FlightForgotten},
			Shows:  []Event{LoadDiscarded, ForgottenServed, ServedByLease},
		},
		{
			Name: "a hung load",
			Doc:  "A load takes longer than the bound, on an instance that is cut off or hears no echo.",

			Bound: 2, Until: 4, Instances: 1, Writers: removes, Joiners: true,
			Budget: Budget{Writes: 1, Loads: 2, Probes: 1, Drops: 1},
			Needs:  []Rule{FlightJoinableByLease, LoadStartIsRegistration, GapForgetsFlights},
			Shows:  []Event{JoinedServed, ForgottenServed, WarmReconnect},
		},
		{
			Name: "regions",
			Doc:  "The item moves from region to region, while loads are under way that do not know yet in which they will end.",

			Bound: 1, Until: 2, Instances: 1, Writers: clears, Joiners: true,
			Regions: []Region{R, S, R, R | S},
			Budget:  Budget{Writes: 2, Loads: 2, Probes: 1},
			Needs:   []Rule{FenceRegions, WaiterNeedsProof, ProofAtEnd, WaiterSharesLater},
			Shows:   []Event{LoadKeptBesideClear, LoadDiscarded, WaiterServed, WaiterLoads},
		},
		{
			Name: "not-founds",
			Doc:  "The source has no item at first, then one, then none again; that there is none is kept.",

			Bound: 1, Until: 2, Instances: 1, Writers: clears,
			Regions: []Region{NoRegion, S, NoRegion, R}, NotFound: []bool{true, false, true, false},
			Budget: Budget{Writes: 2, Loads: 2, Probes: 1},
			Needs:  []Rule{FenceNotFounds, NotFoundInEveryRegion},
			Shows:  []Event{NotFoundKept, LoadKeptBesideClear, LoadDiscarded},
		},
		{
			Name: "a clear",
			Doc:  "The whole cache is cleared while loads are under way.",

			Bound: 1, Until: 2, Instances: 1,
			Writers: []Writer{{Elsewhere, []Op{Clear, Remove}}},
			Budget:  Budget{Writes: 2, Loads: 2, Probes: 1},
			Needs:   []Rule{FenceClears},
			Shows:   []Event{LoadDiscarded},
		},
		{
			Name: "own writes",
			Doc:  "Two callers on the instance itself remove the item, and clear its region.",

			Bound: 1, Until: 2, Instances: 1, Regions: []Region{R, R, R},
			Writers: []Writer{{0, []Op{Remove}}, {0, []Op{ClearRegionR}}},
			Budget:  Budget{Writes: 2, Loads: 1, Probes: 1, LostReplies: 1},
			Needs:   []Rule{LocalPartFirst},
			Shows:   []Event{AcceptedTwice, ServedByLease},
		},
		{
			Name: "a Set",
			Doc:  "A Set on the instance, and a Remove elsewhere that does not race with it at the source.",

			Bound: 1, Until: 2, Instances: 1,
			Writers: []Writer{{0, []Op{Set}}, removes[0]},
			Budget:  Budget{Writes: 2, Loads: 1, Probes: 1, Drops: 1},
			Shows:   []Event{WrittenServedByLease, WarmReconnect},
		},
		{
			Name: "an Update against a Remove",
			Doc:  "An Update on the instance, and a Remove elsewhere that may race with it.",

			Bound: 1, Until: 2, Instances: 1,
			Writers: []Writer{{0, []Op{Update}}, removes[0]},
			Budget:  Budget{Writes: 2, Loads: 1, Probes: 1, Drops: 1},
			Needs:   []Rule{UpdateFenceFirst, GapTripsUpdates},
			Shows:   []Event{UpdateKept, UpdateDiscarded, WrittenServedByLease, WarmReconnect},
		},
		{
			Name: "an Update while cut off",
			Doc:  "An Update whose write takes longer than the bound, on an instance that hears nothing.",

			Bound: 2, Until: 4, Instances: 1,
			Writers: []Writer{{0, []Op{Update}}, removes[0]},
			Budget:  Budget{Writes: 2, Drops: 1},
			Needs:   []Rule{UpdateStartIsFence},
			Shows:   []Event{UpdateKept, UpdateDiscarded},
		},
		{
			Name: "overlapping writes",
			Doc:  "Updates of one item on one instance, in any order at the source, and Sets that do not race.",

			Bound: 1, Until: 1, Instances: 1,
			Writers: []Writer{{0, []Op{Update, Set}}, {0, []Op{Update, Set}}},
			Budget:  Budget{Writes: 3, Loads: 1, Probes: 1},
			Needs:   []Rule{UpdateEndInvalidates},
			Shows:   []Event{UpdateKept, UpdateDiscarded, WrittenServedByLease},
		},
		{
			Name: "two instances",
			Doc:  "An Update or a Set on each of two instances, each of which must evict the other's result.",

			Bound: 1, Until: 1, Instances: 2,
			Writers: []Writer{{0, []Op{Update, Set}}, {1, []Op{Update, Set}}},
			Budget:  Budget{Writes: 2, Probes: 1, Drops: 1},
			Shows:   []Event{UpdateKept, UpdateDiscarded, WrittenServedByLease, GapCleared},
		},
		{
			Name: "clones",
			Doc:  "Two instances were resumed from one snapshot, and each removes the item.",

			Bound: 1, Until: 1, Instances: 2, Clones: true,
			Writers: []Writer{{0, []Op{Remove}}, {1, []Op{Remove, Update}}},
			Budget:  Budget{Writes: 2, Probes: 1, Drops: 1},
			Needs:   []Rule{OwnByNonce},
			Shows:   []Event{OwnPassedOver, UpdateKept, WrittenServedByLease, GapCleared},
		},
	}, sharedScenarios()...)
}

// NotCovered returns scenarios in which the bound breaks although every rule is
// kept. They say where the promise ends.
func NotCovered() []Scenario {
	changes := []Writer{{Elsewhere, []Op{Remove, RemoveOther}}}
	return []Scenario{
		{
			Name: "a cluster without history",
			Doc: "A subscription to a node of a cluster outlives the failover of the node that has the position, " +
				"so that ClearOnReconnectWithoutHistory has no reconnect to go by.",

			Bound: 1, Until: 1, Instances: 1, Writers: changes, Cluster: true, NoHistory: true,
			Budget: Budget{Writes: 1, Probes: 1, Failovers: 1, BusLosses: 1},
		},
		{
			Name: "a forged message",
			Doc: "A hostile user publishes to the channel, in place of the message that an instance has missed, " +
				"one that leads to the same position and names nothing.",

			Bound: 1, Until: 1, Instances: 1, Writers: changes, Hostile: Messages,
			Budget: Budget{Writes: 1, Probes: 1, Drops: 1, Forgeries: 1},
		},
		{
			Name: "a Set that races",
			Doc:  "Someone else changes the source after a Set's writer and before the Set, and removes the item.",

			Bound: 1, Until: 1, Instances: 1, RacingSets: true,
			Writers: []Writer{{0, []Op{Set}}, changes[0]},
			Budget:  Budget{Writes: 2},
		},
		Scenario{
			Name: "split brain",
			Doc:  "A master that does not know of its demotion keeps accepting messages and renewing leases.",

			Bound: 1, Until: 1, Instances: 1, Writers: changes, Isolated: true,
			Budget: Budget{Writes: 1, Probes: 1, Demotions: 1},
		}.Without(PublishNeedsWrite, ProbeNeedsWrite),
		Scenario{
			Name: "a replica that takes writes and does not say what it is",
			Doc:  "A user that may ask neither INFO nor ROLE cannot tell it from a master.",

			Bound: 1, Until: 1, Instances: 1, Writers: changes, Writable: true,
			Budget: Budget{Writes: 1, Probes: 1, Demotions: 1},
		}.Without(PublishNeedsMaster, ProbeNeedsMaster),
	}
}
