package model

// sharedScenarios returns the scenarios with the shared level.
func sharedScenarios() []Scenario {
	removes := []Writer{{Elsewhere, []Op{Remove}}}
	return []Scenario{
		{
			Name: "shared: loads against an invalidation",
			Doc:  "Loads that are slow to read the source and to put what they have read, while the item is removed.",

			Shared: true, Bound: 1, Until: 1, Instances: 1, Writers: removes,
			Budget: Budget{Writes: 1, Loads: 3, Probes: 1, Displaced: 2, Losses: 1},
			Needs:  []Rule{PutNeedsToken, TokenIsOwn, InvalidationDeletesToken, DeleteIsPublish},
			Shows:  []Event{SharedServed, Put, PutRefused, TokenBusy},
		},
		{
			Name: "shared: clears",
			Doc:  "Regions and the cache are cleared, which deletes no values, and a load is under way.",

			Shared: true, Bound: 1, Until: 1, Instances: 1,
			Writers: []Writer{{Elsewhere, []Op{ClearRegionR, ClearRegionS, Clear, ClearAll}}},
			Regions: []Region{R, S, R | S},
			Budget:  Budget{Writes: 2, Loads: 2, Probes: 1, Losses: 1},
			Needs:   []Rule{ClearsChecked, StampedWithToken, EpochChecked, RegionsReadWithEpoch},
			Shows:   []Event{SharedInvalid, SharedUsedBesideClear, SharedServedByLease, Put, EpochMade},
		},
		{
			Name: "shared: not-founds",
			Doc:  "The source has no item at first, then one, then none again; that there is none is at the shared level.",

			Shared: true, Bound: 1, Until: 1, Instances: 1,
			Writers: []Writer{{Elsewhere, []Op{ClearRegionR, ClearRegionS}}},
			Regions: []Region{NoRegion, S, NoRegion}, NotFound: []bool{true, false, true},
			Budget: Budget{Writes: 2, Loads: 2, Probes: 1},
			Needs:  []Rule{SharedNotFoundIsLatest},
			Shows:  []Event{SharedNotFound, SharedInvalid, NotFoundKept, Put},
		},
		{
			Name: "shared: a token taken twice",
			Doc:  "The script that takes a token runs twice, as in a client's redirect loop, the second time late.",

			Shared: true, Bound: 1, Until: 1, Instances: 1,
			Writers: []Writer{{Elsewhere, []Op{Remove, ClearAll}}},
			Budget:  Budget{Writes: 1, Loads: 2, Probes: 1, Retakes: 1, Losses: 1, Displaced: 1},
			Needs:   []Rule{TokenMadeInScript, EpochMadeInScript},
			Shows:   []Event{Put, PutRefused, TokenBusy},
		},
		{
			Name: "shared: extended claims",
			Doc:  "A slow load's claim is extended twice, each time late, while the item is removed and others load it.",

			Shared: true, Bound: 1, Until: 1, Instances: 1, Writers: removes,
			Budget: Budget{Writes: 1, Loads: 3, Probes: 1, Extensions: 2, Displaced: 2, Losses: 1},
			Needs:  []Rule{ExtensionMakesNoToken, ExtensionOfOwnToken},
			Shows:  []Event{ClaimExtended, ExtensionRefused, Put, PutRefused, TokenBusy},
		},
		{
			Name: "shared: two loads with one claim",
			Doc:  "Two loads of an instance, of which one began since a region was cleared, share a claim, while the item is removed.",

			Shared: true, Bound: 1, Until: 1, Instances: 1,
			Writers: []Writer{{Elsewhere, []Op{Remove, ClearRegionR}}}, Regions: []Region{R, R, R, R},
			Budget: Budget{Writes: 3, Loads: 3, Probes: 1},
			Shows:  []Event{TokenShared, Put, PutRefused},
		},
		{
			Name: "shared: extended claims and a failover",
			Doc:  "The new master brings back a token that was deleted, and the claim is extended there.",

			Shared: true, Bound: 1, Until: 1, Instances: 1,
			Writers: []Writer{{Elsewhere, []Op{Remove, ClearRegionR}}}, Regions: []Region{R, R, R},
			Budget: Budget{Writes: 1, Loads: 2, Probes: 1, Failovers: 1, Extensions: 1},
			Shows:  []Event{ClaimExtended, ExtensionRefused},
		},
		{
			Name: "shared: lost keys",
			Doc:  "Redis loses values, tokens and clears, while the item is removed, with or without a region.",

			Shared: true, Bound: 1, Until: 1, Instances: 1,
			Writers: []Writer{{Elsewhere, []Op{Remove, ClearRegionR}}}, Regions: []Region{R, R, R},
			Budget: Budget{Writes: 2, Loads: 2, Probes: 1, Losses: 2},
			Needs:  []Rule{EpochChecked},
			Shows:  []Event{EpochMade, PutRefused, SharedInvalid},
		},
		{
			Name: "shared: failover to a lagging replica",
			Doc:  "The new master brings back values, tokens and clears that were deleted or changed.",

			Shared: true, Bound: 1, Until: 1, Instances: 1,
			Writers: []Writer{{Elsewhere, []Op{Remove, ClearRegionR}}}, Regions: []Region{R, R, R},
			Budget: Budget{Writes: 1, Loads: 2, Probes: 1, Failovers: 1},
			Needs:  []Rule{ProbeDropsClears, SharedOfLeaseHistory},
			Shows:  []Event{ClearsDropped, EpochMade},
		},
		{
			Name: "shared: failover in a cluster",
			Doc:  "The same, but subscriptions stay.",

			Shared: true, Bound: 1, Until: 1, Instances: 1, Cluster: true,
			Writers: []Writer{{Elsewhere, []Op{ClearRegionR}}}, Regions: []Region{R, S, S},
			Budget: Budget{Writes: 2, Loads: 1, Probes: 2, Failovers: 1},
			Needs:  []Rule{ProbeDropsClears, SharedOfLeaseHistory, HistoryNotedFirst, RegionsReadCounts},
			Shows:  []Event{ClearsDropped},
		},
		{
			Name: "shared: a demoted master",
			Doc:  "The old master answers reads, and becomes a copy of the new one sooner or later, and lags.",

			Shared: true, Bound: 1, Until: 1, Instances: 1, Writers: removes,
			Budget: Budget{Writes: 1, Loads: 2, Probes: 1, Demotions: 1},
			Needs:  []Rule{SharedFromMaster},
			Shows:  []Event{ReplicaAvoided, ClearsDropped, Refused},
		},
		{
			Name: "shared: demoted after a failover",
			Doc:  "A master is demoted in favour of one that lags, and becomes a copy of it while a load asks.",

			Shared: true, Bound: 1, Until: 1, Instances: 1, Lagging: true,
			Writers: []Writer{{Elsewhere, []Op{ClearRegionR}}}, Regions: []Region{R, S},
			Budget: Budget{Writes: 1, Loads: 1, Probes: 1, Failovers: 1, Demotions: 1},
			Needs:  []Rule{ServerCheckedLast},
			Shows:  []Event{ReplicaAvoided},
		},
		{
			Name: "shared: no history",
			Doc:  "Redis does not tell its history, so that nothing is left to go by after a failover.",

			Shared: true, Bound: 1, Until: 1, Instances: 1, Writers: removes, NoHistory: true,
			Budget: Budget{Writes: 1, Loads: 1, Probes: 1, Failovers: 1},
			Needs:  []Rule{SharedNeedsHistory},
			Shows:  []Event{GapCleared},
		},
		{
			Name: "shared: an isolated master",
			Doc:  "The old master does not know that it was demoted. It takes no writes, since it has too few replicas, and answers reads.",

			Shared: true, Bound: 2, Until: 3, Instances: 1, Writers: removes, Isolated: true, Joiners: true,
			Budget: Budget{Writes: 1, Loads: 1, Probes: 1, Demotions: 1, Displaced: 1},
			Needs:  []Rule{SharedNeedsLease, SharedAgeFromLease},
			Shows:  []Event{SharedServed, Refused},
		},
		{
			Name: "shared: own writes",
			Doc:  "Callers on the instance remove the item, update it and set it, and others read what is at the shared level meanwhile.",

			Shared: true, Bound: 1, Until: 1, Instances: 1, Regions: []Region{R, R, R},
			Writers: []Writer{{0, []Op{Remove, Set, Update, ClearRegionR, Clear, ClearAll}}},
			Budget:  Budget{Writes: 1, Loads: 2, Probes: 1, Displaced: 2},
			Needs:   []Rule{OwnWritesFirst},
			Shows:   []Event{SharedAvoided, WrittenServedByLease, SharedServedByLease},
		},
		{
			Name: "shared: own writes against others",
			Doc:  "The same, against a Remove elsewhere.",

			Shared: true, Bound: 1, Until: 1, Instances: 1,
			Writers: []Writer{{0, []Op{Remove, Set, Update}}, removes[0]},
			Budget:  Budget{Writes: 2, Loads: 2, Probes: 1},
			Shows:   []Event{SharedAvoided, UpdateKept, UpdateDiscarded, Put, PutRefused},
		},
		{
			Name: "shared: a hung load",
			Doc:  "A load at the shared level takes longer than the bound, and others want to join it, on an instance that writes and is cut off.",

			Shared: true, Bound: 2, Until: 3, Instances: 1, Joiners: true,
			Writers: []Writer{{0, []Op{Remove}}},
			Budget:  Budget{Writes: 1, Loads: 2, Probes: 1, Drops: 1},
			Needs:   []Rule{OwnWritesFirst},
			Shows:   []Event{JoinedServed, ForgottenServed},
		},
		{
			Name: "shared: own writes and a failover",
			Doc:  "The new master may not know of the instance's own message, which is deleted nowhere then.",

			Shared: true, Bound: 1, Until: 1, Instances: 1,
			Writers: []Writer{{0, []Op{Remove}}},
			Budget:  Budget{Writes: 1, Loads: 2, Probes: 1, Failovers: 1},
			Needs:   []Rule{ProbeDropsClears, SharedOfLeaseHistory, OwnWritesFirst},
			Shows:   []Event{SharedAvoided, ClearsDropped},
		},
		{
			Name: "shared: a lost reply",
			Doc:  "The instance's publisher sends its message again, and the first may run late.",

			Shared: true, Bound: 1, Until: 1, Instances: 1,
			Writers: []Writer{{0, []Op{Remove}}},
			Budget:  Budget{Writes: 1, Loads: 2, Probes: 1, LostReplies: 1, Delays: 1},
			Needs:   []Rule{OwnWritesFirst},
			Shows:   []Event{AcceptedTwice, SharedAvoided},
		},
		{
			Name: "shared: a restart",
			Doc:  "Redis comes back with nothing in it.",

			Shared: true, Bound: 1, Until: 2, Instances: 1, Writers: removes,
			Budget: Budget{Writes: 1, Loads: 2, Probes: 1, Restarts: 1},
			Shows:  []Event{EpochMade, PutRefused, Put},
		},
		{
			Name: "shared: two instances",
			Doc:  "One instance loads for the other, while either writes.",

			Shared: true, Bound: 1, Until: 1, Instances: 2,
			Writers: []Writer{{0, []Op{Remove, Update}}},
			Budget:  Budget{Writes: 1, Loads: 2, Probes: 1, Displaced: 1},
			Shows:   []Event{SharedServed, TokenBusy, Put, SharedAvoided},
		},
	}
}
