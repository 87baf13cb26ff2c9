package model

// The state consists of plain bytes, without pointers and padding, since it is copied for
// every step and compared as a whole.

const (
	maxInstances = 2
	maxWriters   = 2
	maxVersions  = 4 // of the item, version 0 included
	maxInbox     = 4
)

// never is a time so long ago that it is always older than the bound.
const never int8 = -100

// position is a position of the channel. Each new one differs from all others.
type position uint8

// absent is the position of a server that has lost it, and of an instance that does not
// know it.
const absent position = 0

// history is the id of a server's history. Zero: the server does not tell.
type history uint8

// version counts the versions of the watched item at the source.
type version int8

// noVersion is the version of a write of another item.
const noVersion version = -1

// target is what an invalidation names.
type target uint8

const (
	theItem    target = 1 << iota // the key of the item that is watched
	regionR                       // a region
	regionS                       // another
	wholeCache                    // the whole cache: Clear
	gap                           // everything, because something was missed
)

const anyRegion = regionR | regionS

// state is the whole state between two steps.
type state struct {
	now      int8
	source   version             // what the source holds
	named    [maxVersions]target // what the invalidation of each version names
	accepted [maxVersions]int8   // when Redis accepted it; never: it has not yet
	master   server              // where messages are accepted
	replica  data                // what a replica has of the master's data
	demoted  server              // a former master that takes no writes; no history: there is none
	minted   position            // the newest position that was made
	epochs   epoch               // the newest epoch that was made
	tokens   token               // the newest token that was made
	left     Budget              // of what may still happen
	instance [maxInstances]instance
	writer   [maxWriters]writer
	retake   retake

	extension extension
}

// server is a Redis server.
type server struct {
	data
	history history
}

// data is what a server holds for the channel, and what a replica gets of it: the
// position and the shared level.
type data struct {
	position position
	value    value
	token    token
	clears   clears
}

// value is the item at the shared level. No epoch: there is none.
type value struct {
	version version
	stamp   stamp
}

// stamp is the label of a value: clears after it make the value invalid.
type stamp struct {
	epoch epoch
	count count
}

// clears is the hash of the clears. No epoch: there is none.
type clears struct {
	epoch   epoch
	history history  // of the server, when the epoch was made
	count   count    // of all clears
	cache   count    // at the last one of the cache
	regions [2]count // at the last one of R, and of S
}

// epoch is the id of a hash of clears; every one that is made is new.
type epoch uint8

// count counts clears.
type count uint8

// token is the mark of a load that may put what it has read; every one that is
// made is new. Zero: there is none.
type token uint8

// link is where an instance's subscription leads.
type link uint8

const (
	broken link = iota
	toMaster
	toDemoted
)

// instance is one process with a cache: its subscriber, and its copy of the item.
type instance struct {
	link     link
	unproven bool     // the subscription has seen no echo yet
	position position // last applied
	history  history  // of the last echo
	lease    int8     // when the probe was sent that earned it; never: none is held
	toClear  bool     // the lease came before the clear that its echo asks for

	inbox    [maxInbox]message // from Redis, in order, the first one next
	messages int8
	probes   [2]probe // on their way to Redis, the oldest first

	entry   entry
	flights [2]flight // the oldest first
	reader  reader
}

// message is what arrives on a subscription: an invalidation or an echo.
type message struct {
	kind     messageKind
	previous position // invalidation: the position before it
	own      position // invalidation: the one it made; echo: the one the probe read
	names    target   // invalidation
	from     int8     // invalidation: the instance that published it
	history  history  // echo
	sent     int8     // echo: when its probe was sent
	forgery  forgery
}

type messageKind uint8

const (
	noMessage messageKind = iota
	invalidation
	echo
	garbage // undecodable
)

// forgery is what shows that a message is not what it says it is.
type forgery uint8

const (
	genuine        forgery = iota // or nothing shows that it is not
	wrongChannel                  // an invalidation on the instance's own channel, an echo on the other
	noProbeOfNonce                // an echo on the instance's own channel, of no probe
)

// probe is a probe on its way to Redis.
type probe struct {
	pending bool
	sent    int8
	late    bool // the subscription that it was sent for is gone
	halfRun bool // has read the history, if reading it is a step of its own
	history history
}

// entry is the copy of the item that an instance holds.
type entry struct {
	held    bool
	written bool // by an Update or Set, not a load
	shared  bool // read from the shared level
	version version
	start   int8 // of its load
}

// flight is a load under way.
type flight struct {
	phase    flightPhase
	version  version // that it has read
	start    int8
	lastRead int8 // when the read of the caller that joined last started
	fence    target

	waits     bool // conditional waiters wait for it: they get its result only if it is proven
	waitsFrom int8 // when the read of the last of these started
	proven    bool // what it has read was proven when it was read, see ProofAtEnd

	shared  bool    // the version comes from the shared level
	lease   int8    // under which it reads the shared level
	history history // that it wants to find there
	with    link    // found: the server that it has the value from
	stamp   stamp   // of the value that it has found, or of its token
	token   token   // with which it may put what it reads from the source
}

type flightPhase uint8

const (
	noFlight    flightPhase = iota
	asking                  // is about to ask the shared level
	found                   // has the value there, and is about to read the clears
	foundBefore             // there were clears since, and it is about to read those of its regions
	missed                  // has found nothing that is valid, and is about to take the token
	loading                 // has not read the source yet
	loaded                  // has read it, or what is at the shared level
	putting                 // has ended, but for what it puts
)

// reader is a slow Get: it pauses between reading clock and lease and looking up the
// entry.
type reader struct {
	active bool
	start  int8
	leased bool  // what it saw of the lease, if that comes first
	entry  entry // what it saw of the entry, if that comes first
}

// writer is a caller that changes the source and invalidates, together with the
// publisher that delivers its message.
type writer struct {
	phase    writerPhase
	op       Op
	version  version  // that it made at the source
	start    int8     // of an Update's fence
	fence    target   // what was invalidated since an Update's start
	position position // chosen for its message, if the script does not do that
	scripts  [2]script
}

type writerPhase uint8

const (
	idle    writerPhase = iota
	fenced              // Update: has begun, the source is not written yet
	written             // the source is written, the local part is to be done
	queued              // the message waits for Redis to accept it
	late                // accepted, and the local part still to be done
)

// script is one execution of the publish script that is asked for, on its way to
// Redis.
type script struct {
	phase    scriptPhase
	awaited  bool // the publisher waits for its answer
	previous position
	own      position // chosen by the publisher; absent: the script makes one
	version  version
	names    target
	all      bool // ClearAll
}

// retake is a second execution of a script that takes a token, on its way to Redis.
type retake struct {
	pending bool
	token   token // that the script takes; zero: it makes one
	epoch   epoch // that it makes; zero: a new one
}

// extension is an execution of the script that extends a claim, on its way to Redis.
type extension struct {
	pending bool
	token   token // that it is meant for
}

type scriptPhase uint8

const (
	noScript scriptPhase = iota
	onItsWay
	halfRun   // has read the position, if reading and writing are two steps
	published // has sent the message, if it deletes in a step of its own
)
