package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/nearcache/nearcache"
)

type role struct{ tenant, name string }

// Directory stands for the database of tenants, users and roles.
type Directory struct {
	mu    sync.Mutex // guards everything below
	roles map[role]Rights
	users map[Who]string // the role of each
	asked map[Who]int    // how often Rights was called
}

func NewDirectory() *Directory {
	return &Directory{
		roles: map[role]Rights{
			{"acme", "editor"}:   {Read: true, Write: true},
			{"globex", "editor"}: {Read: true, Write: true},
		},
		users: map[Who]string{
			{"acme", "alice"}: "editor",
			{"acme", "bob"}:   "editor",
			{"globex", "eve"}: "editor",
		},
		asked: map[Who]int{},
	}
}

// Rights reads what a user may do. It takes as long as a query does.
func (d *Directory) Rights(ctx context.Context, who Who) (Rights, error) {
	select {
	case <-time.After(5 * time.Millisecond):
	case <-ctx.Done():
		return Rights{}, ctx.Err()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked[who]++
	name, ok := d.users[who]
	if !ok {
		return Rights{}, fmt.Errorf("user %q of tenant %q: %w", who.User, who.Tenant, nearcache.ErrNotFound)
	}
	return d.roles[role{who.Tenant, name}], nil
}

func (d *Directory) Revoke(_ context.Context, who Who) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.users, who)
	return nil
}

func (d *Directory) SetRole(_ context.Context, tenant, name string, rights Rights) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.roles[role{tenant, name}] = rights
	return nil
}

// Asked returns how often the rights of a user were read.
func (d *Directory) Asked(who Who) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.asked[who]
}
