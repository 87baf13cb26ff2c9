package chart

import (
	"cmp"
	"slices"
)

// Tone says what a bar or a line stands for, and so how it is coloured.
type Tone int

const (
	Peer Tone = iota
	Reference
	Ours    // what the chart is about
	Variant // the same under other circumstances
)

func (t Tone) colour() string {
	return [...]string{Peer: "#b4bcc6", Reference: "#6e7781", Ours: "#0969da", Variant: "#80b3f0"}[t]
}

// Bar is one row of Bars.
type Bar struct {
	Label string
	Value float64
	Text  string // the value as it is shown
	Tone  Tone
}

// Bars is a chart of horizontal bars, the best on top.
type Bars struct {
	Title    string
	Subtitle string
	Bars     []Bar

	// HigherIsBetter sorts the longest to the top.
	HigherIsBetter bool

	// Limit is the longest that is drawn in full; longer bars are drawn broken. 0:
	// chosen so that Ours and what is like it can be told apart, and without a limit
	// where higher is better.
	Limit float64
}

const (
	barPitch = 27.0
	barThick = 17.0
)

// SVG draws the chart.
func (b Bars) SVG() []byte {
	bars := slices.Clone(b.Bars)
	slices.SortStableFunc(bars, func(x, y Bar) int {
		if b.HigherIsBetter {
			return cmp.Compare(y.Value, x.Value)
		}
		return cmp.Compare(x.Value, y.Value)
	})
	limit := b.limit(bars)
	longest, labels, texts := 0.0, 0.0, 0.0
	for _, bar := range bars {
		if bar.Value <= limit {
			longest = max(longest, bar.Value)
		}
		labels = max(labels, breadth(bar.Label, regular))
		texts = max(texts, breadth(bar.Text, regular))
	}
	broken := len(bars) > 0 && slices.MaxFunc(bars, func(x, y Bar) int { return cmp.Compare(x.Value, y.Value) }).Value > limit

	c := &canvas{}
	top := c.heading(b.Title, b.Subtitle) + 18
	x0, x1 := margin+labels+10, width-margin-texts-12
	scaleEnd := x1
	if broken {
		scaleEnd -= 40 // where broken bars go on
	}
	marks := ticks(0, longest, 6)
	scale := func(v float64) float64 { return x0 + (scaleEnd-x0)*v/marks[len(marks)-1] }
	bottom := top + barPitch*float64(len(bars))
	for _, mark := range marks {
		c.line(scale(mark), top-4, scale(mark), bottom+2, grid)
		c.text(scale(mark), bottom+18, small, middle, faint, false, px(mark))
	}
	for i, bar := range bars {
		y := top + barPitch*float64(i) + (barPitch-barThick)/2
		base := y + barThick - 4
		ours := bar.Tone == Ours
		colour := ink
		if ours {
			colour = bar.Tone.colour()
		}
		c.text(x0-10, base, regular, right, colour, ours, bar.Label)
		end := scale(bar.Value)
		if bar.Value > limit {
			end = x1
		}
		c.add(`<rect x="%s" y="%s" width="%s" height="%s" rx="2" fill="%s"/>`,
			px(x0), px(y), px(max(end-x0, 1.5)), px(barThick), bar.Tone.colour())
		if bar.Value > limit {
			tear(c, x1-24, y)
		}
		c.text(end+8, base, regular, left, colour, ours, bar.Text)
	}
	c.line(x0, top-4, x0, bottom+2, faint)
	legend(c, bars, bottom+44)
	c.height = bottom + 44 + margin
	return c.bytes(b.Title)
}

// legend says what the colours of the bars stand for.
func legend(c *canvas, bars []Bar, y float64) {
	x := margin + 0.0
	for _, entry := range []struct {
		tone Tone
		text string
	}{{Ours, "nearcache"}, {Variant, "nearcache, otherwise set up"}, {Peer, "peers"}, {Reference, "references"}} {
		if !slices.ContainsFunc(bars, func(bar Bar) bool { return bar.Tone == entry.tone }) {
			continue
		}
		c.add(`<rect x="%s" y="%s" width="11" height="11" rx="2" fill="%s"/>`, px(x), px(y-10), entry.tone.colour())
		c.text(x+17, y, small, left, faint, false, entry.text)
		x += 17 + breadth(entry.text, small) + 22
	}
}

// limit returns the longest value that is drawn in full.
func (b Bars) limit(bars []Bar) float64 {
	if b.Limit > 0 {
		return b.Limit
	}
	values := make([]float64, len(bars))
	of := 0.0 // Ours, or the middle
	for i, bar := range bars {
		values[i] = bar.Value
		if bar.Tone == Ours {
			of = max(of, bar.Value)
		}
	}
	if len(values) == 0 {
		return 0
	}
	slices.Sort(values)
	if b.HigherIsBetter {
		return values[len(values)-1]
	}
	if of == 0 {
		of = values[len(values)/2]
	}
	// What is far beyond it, and far beyond the one before, would flatten the rest.
	for i := 1; i < len(values); i++ {
		if values[i] > 8*of && values[i] > 1.5*values[i-1] {
			return values[i-1]
		}
	}
	return values[len(values)-1]
}

// tear draws the gap of a broken bar.
func tear(c *canvas, x, y float64) {
	c.add(`<path d="M%s %s l8 -%s h5 l-8 %s z" fill="%s"/>`, px(x), px(y+barThick+1), px(barThick+2), px(barThick+2), paper)
}
