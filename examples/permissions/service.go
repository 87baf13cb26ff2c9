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

// Who is a user of a tenant, and the key of the cache: any comparable type will do
// that can be written as text, for other instances to read, and read back.
type Who struct{ Tenant, User string }

// MarshalText escapes both names: no two keys may have the same text, or a revocation
// for one of them would pass for one of the other.
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
		IdleTTL:      2 * time.Minute,  // of those who have gone, not all that memory has room for
		NotFoundTTL:  10 * time.Second, // somebody who is unknown asks again and again
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

// Revoke takes all rights of a user away. The error may be ErrUnconfirmed: then it is
// done, and effective here. Other instances will hear of it, and whoever revokes has
// to know that they have not yet.
func (g *Guard) Revoke(ctx context.Context, who Who) error {
	err := g.directory.Revoke(ctx, who)
	return errors.Join(err, g.rights.Remove(ctx, who))
}

// SetRole changes what all users of a tenant may do who have that role.
func (g *Guard) SetRole(ctx context.Context, tenant, role string, rights Rights) error {
	err := g.directory.SetRole(ctx, tenant, role, rights)
	return errors.Join(err, g.rights.ClearRegion(ctx, tenant))
}

// recipe end
