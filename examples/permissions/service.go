package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/nearcache/nearcache"
)

const maxStaleness = time.Second

// recipe: permissions key

// Who is a user of a tenant, and the key of the cache. A key may have any comparable
// type that can be written as text and read back, since other instances read it.
type Who struct{ Tenant, User string }

// MarshalText escapes both names. No two keys may have the same text: a revocation of
// one would otherwise count as a revocation of the other.
func (w Who) MarshalText() ([]byte, error) {
	return []byte(url.QueryEscape(w.Tenant) + "/" + url.QueryEscape(w.User)), nil
}

// UnmarshalText reads what MarshalText wrote.
func (w *Who) UnmarshalText(text []byte) (err error) {
	tenant, user, found := strings.Cut(string(text), "/")
	if !found {
		return fmt.Errorf("%q is no user of a tenant", text)
	}
	if w.Tenant, err = url.QueryUnescape(tenant); err != nil {
		return err
	}
	w.User, err = url.QueryUnescape(user)
	return err
}

// recipe end

// Rights are what a user may do. It is a plain value: a map here would be shared by
// all who get it from the cache.
type Rights struct{ Read, Write bool }

// Guard answers from memory what a user may do.
type Guard struct {
	directory *Directory
	rights    *nearcache.Cache[Who, Rights]
}

func NewGuard(bp *nearcache.Backplane, directory *Directory) (*Guard, error) {
	// recipe: permissions cache
	rights, err := nearcache.New(bp, nearcache.Options[Who, Rights]{
		Name:         "rights",
		Load:         directory.Rights,
		TTL:          10 * time.Minute,
		IdleTTL:      2 * time.Minute,  // users who have left do not fill the memory
		NotFoundTTL:  10 * time.Second, // unknown users ask again and again
		MaxStaleness: maxStaleness,     // a revocation is effective by then, whatever fails
		Regions:      func(who Who, _ Rights) []string { return []string{who.Tenant} },
	})
	// recipe end
	if err != nil {
		return nil, err
	}
	return &Guard{directory, rights}, nil
}

// recipe: permissions guard

// Rights returns what a user may do: nothing, if the user is unknown or there is an
// error.
func (g *Guard) Rights(ctx context.Context, who Who) (Rights, error) {
	rights, err := g.rights.Get(ctx, who)
	if errors.Is(err, nearcache.ErrNotFound) {
		return Rights{}, nil
	}
	return rights, err
}

// Revoke takes all rights of a user away. The error may be ErrUnconfirmed: then the
// revocation is done, and effective here. Other instances will hear of it, and the
// caller has to know that they may not have heard yet.
func (g *Guard) Revoke(ctx context.Context, who Who) error {
	err := g.directory.Revoke(ctx, who)
	return errors.Join(err, g.rights.Remove(ctx, who))
}

// SetRole changes what all users of a tenant with that role may do.
func (g *Guard) SetRole(ctx context.Context, tenant, role string, rights Rights) error {
	err := g.directory.SetRole(ctx, tenant, role, rights)
	return errors.Join(err, g.rights.ClearRegion(ctx, tenant))
}

// recipe end
