package nearcachetest_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nearcache/nearcache"
	"github.com/nearcache/nearcache/nearcachetest"
)

// An instance that is cut off is not told of a change, and stops serving the old
// version when MaxStaleness has passed. No real time passes meanwhile.
func ExampleSimulation_Partition() {
	t := new(testing.T) // in a test: func TestPartition(t *testing.T)
	synctest.Test(t, func(t *testing.T) {
		ctx, db := t.Context(), new(Database)
		fleet := nearcachetest.Config{
			Backplane: nearcache.BackplaneOptions{MaxStaleness: 2 * time.Second},
		}.Fleet(t, 2)
		a, _ := NewCatalogue(fleet.Backplane(0), db)
		b, _ := NewCatalogue(fleet.Backplane(1), db)
		show := func(when string) {
			title, err := b.Title(ctx, 1)
			fmt.Println(when+":", title, err)
		}

		_ = a.Rename(ctx, 1, "Moby Dik")
		fleet.Settle()
		show("before")
		fleet.Partition(1)
		fmt.Println("Rename:", a.Rename(ctx, 1, "Moby Dick"))
		fleet.Settle()
		show("cut off")
		time.Sleep(2 * time.Second)
		show("after MaxStaleness")
		fleet.Heal()
		fleet.Settle()
		fmt.Println("healed:", fleet.Backplane(1).State())
	})
	// Output:
	// before: Moby Dik <nil>
	// Rename: <nil>
	// cut off: Moby Dik <nil>
	// after MaxStaleness: Moby Dick <nil>
	// healed: live
}
