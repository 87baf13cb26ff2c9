package nearcachetest_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/nearcache/nearcache"
	"github.com/nearcache/nearcache/nearcachetest"
)

// Database stands for the database that all instances of a service share.
type Database struct{ titles sync.Map }

func (d *Database) Title(_ context.Context, id int) (string, error) {
	title, found := d.titles.Load(id)
	if !found {
		return "", nearcache.ErrNotFound
	}
	return title.(string), nil
}

// Catalogue is the service under test. Each instance of it has one, on the
// backplane that it is given.
type Catalogue struct {
	db     *Database
	titles *nearcache.Cache[int, string]
}

func NewCatalogue(bp *nearcache.Backplane, db *Database) (*Catalogue, error) {
	titles, err := nearcache.New(bp, nearcache.Options[int, string]{Name: "titles", Load: db.Title})
	return &Catalogue{db, titles}, err
}

func (c *Catalogue) Title(ctx context.Context, id int) (string, error) { return c.titles.Get(ctx, id) }

// Rename does it right: first the database, then the caches.
func (c *Catalogue) Rename(ctx context.Context, id int, title string) error {
	c.db.titles.Store(id, title)
	return c.titles.Remove(ctx, id)
}

// Correct has a bug: it does not tell the caches.
func (c *Catalogue) Correct(_ context.Context, id int, title string) error {
	c.db.titles.Store(id, title)
	return nil
}

// Two instances of a service are put on a fleet. What is changed on one must be
// seen on the other as soon as the fleet is at rest.
func Example() {
	t := new(testing.T) // in a test: func TestCatalogue(t *testing.T)
	synctest.Test(t, func(t *testing.T) {
		ctx, db := t.Context(), new(Database)
		fleet := nearcachetest.Fleet(t, 2)
		a, err := NewCatalogue(fleet.Backplane(0), db)
		if err != nil {
			t.Fatal(err)
		}
		b, err := NewCatalogue(fleet.Backplane(1), db)
		if err != nil {
			t.Fatal(err)
		}

		tests := []struct {
			name   string
			change func(ctx context.Context, id int, title string) error
		}{
			{"Rename", a.Rename},
			{"Correct", a.Correct},
		}
		for id, test := range tests {
			db.titles.Store(id, "Moby Dik")
			if _, err := b.Title(ctx, id); err != nil { // b has it in memory now
				t.Fatal(err)
			}
			if err := test.change(ctx, id, "Moby Dick"); err != nil {
				t.Fatal(err)
			}
			fleet.Settle()
			title, err := b.Title(ctx, id)
			fmt.Println("after", test.name, "the other instance serves", title, err)
		}
	})
	// Output:
	// after Rename the other instance serves Moby Dick <nil>
	// after Correct the other instance serves Moby Dik <nil>
}
