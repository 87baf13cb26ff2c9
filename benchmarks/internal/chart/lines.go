package chart

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
)

// Line is one series of Lines.
type Line struct {
	Name string
	Y    []float64 // one for each X; NaN: none
	Tone Tone
}

// Lines is a chart of lines over a few places that are drawn equally far apart.
type Lines struct {
	Title    string
	Subtitle string
	X        []string // the places
	XTitle   string
	YTitle   string
	Lines    []Line
	FromZero bool // the scale begins at 0, else somewhat below the least
}

// strokes colours the lines of peers in their order. They can be told apart by
// those who do not see red and green alike, and each has its name at its end.
var strokes = []string{"#d1570d", "#1a7f5a", "#8250df", "#9a6700", "#bf3989", "#0a7f8c", "#4d5560", "#a40e26"}

const plotHeight = 330.0

// SVG draws the chart.
func (l Lines) SVG() []byte {
	c := &canvas{}
	top := c.heading(l.Title, l.Subtitle) + 40
	bottom := top + plotHeight
	names := 0.0
	for _, line := range l.Lines {
		names = max(names, breadth(line.Name, regular))
	}
	marks := l.marks()
	low, high := marks[0], marks[len(marks)-1]
	x0, x1 := margin+breadth(px(high), small)+14, width-margin-names-16
	y := func(v float64) float64 { return bottom - (bottom-top)*(v-low)/(high-low) }
	x := func(i int) float64 {
		if len(l.X) == 1 {
			return (x0 + x1) / 2
		}
		return x0 + 14 + (x1-x0-28)*float64(i)/float64(len(l.X)-1)
	}

	c.text(margin, top-14, small, left, faint, false, l.YTitle)
	for _, mark := range marks {
		c.line(x0, y(mark), x1, y(mark), grid)
		c.text(x0-8, y(mark)+4, small, right, faint, false, px(mark))
	}
	c.line(x0, bottom, x1, bottom, faint)
	for i, place := range l.X {
		c.text(x(i), bottom+18, small, middle, faint, false, place)
	}
	c.text((x0+x1)/2, bottom+38, small, middle, faint, false, l.XTitle)

	ends := l.ends(y)
	for _, e := range ends { // those that matter most last, on top
		drawLine(c, e, x, y)
	}
	spread(ends, top, bottom)
	for _, e := range ends {
		last := e.last()
		c.add(`<path d="M%s %s L%s %s" stroke="%s" fill="none" stroke-opacity="0.5"/>`,
			px(x(last)+6), px(y(e.Y[last])), px(x1+10), px(e.labelY), e.colour)
		c.text(x1+14, e.labelY+4, regular, left, e.colour, e.Tone == Ours, e.Name)
	}
	c.height = bottom + 38 + margin
	return c.bytes(l.Title)
}

func (l Lines) marks() []float64 {
	low, high := math.Inf(1), math.Inf(-1)
	for _, line := range l.Lines {
		for _, v := range line.Y {
			if !math.IsNaN(v) {
				low, high = min(low, v), max(high, v)
			}
		}
	}
	if high < low {
		low, high = 0, 1
	}
	if l.FromZero {
		low = 0
	}
	return ticks(low, high, 6)
}

// end is a line with its colour and the place of its name.
type end struct {
	Line
	colour string
	labelY float64
}

// last returns the last place that has a value.
func (e end) last() int {
	for i := len(e.Y) - 1; i > 0; i-- {
		if !math.IsNaN(e.Y[i]) {
			return i
		}
	}
	return 0
}

// ends returns the lines that have values, coloured, with Ours last.
func (l Lines) ends(y func(float64) float64) []*end {
	var ends []*end
	peers := 0
	for _, line := range l.Lines {
		e := &end{Line: line, colour: line.Tone.colour()}
		if line.Tone == Peer {
			e.colour = strokes[peers%len(strokes)]
			peers++
		}
		if len(line.Y) == 0 || math.IsNaN(line.Y[e.last()]) {
			continue
		}
		e.labelY = y(line.Y[e.last()])
		ends = append(ends, e)
	}
	slices.SortStableFunc(ends, func(a, b *end) int { return cmp.Compare(a.Tone, b.Tone) })
	return ends
}

func drawLine(c *canvas, e *end, x func(int) float64, y func(float64) float64) {
	thick, dash, radius := 2.0, "", 3.0
	switch e.Tone {
	case Ours:
		thick, radius = 3.5, 4.5
	case Reference:
		dash = ` stroke-dasharray="5 4"`
	}
	var path strings.Builder
	pen := "M"
	for i, v := range e.Y {
		if math.IsNaN(v) {
			pen = "M"
			continue
		}
		fmt.Fprintf(&path, "%s%s %s", pen, px(x(i)), px(y(v)))
		pen = " L"
	}
	c.add(`<path d="%s" stroke="%s" stroke-width="%s" fill="none" stroke-linejoin="round"%s/>`,
		path.String(), e.colour, px(thick), dash)
	for i, v := range e.Y {
		if !math.IsNaN(v) {
			c.add(`<circle cx="%s" cy="%s" r="%s" fill="%s"/>`, px(x(i)), px(y(v)), px(radius), e.colour)
		}
	}
}

// labelPitch is how far apart names have to be.
const labelPitch = 18.0

// spread moves names apart that would lie over each other, as little as it takes,
// within the plot as far as there is room.
func spread(ends []*end, top, bottom float64) {
	order := slices.Clone(ends)
	slices.SortStableFunc(order, func(a, b *end) int { return cmp.Compare(a.labelY, b.labelY) })
	for i := 1; i < len(order); i++ { // down
		order[i].labelY = max(order[i].labelY, order[i-1].labelY+labelPitch)
	}
	least := bottom
	for i := len(order) - 1; i >= 0; i-- { // and up again from the bottom
		order[i].labelY = max(min(order[i].labelY, least), top-20)
		least = order[i].labelY - labelPitch
	}
}
