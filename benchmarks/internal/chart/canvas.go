// Package chart draws bars and lines as SVG: on a card with a background of its
// own, so that they can be read on a light page and on a dark one.
package chart

import (
	"fmt"
	"math"
	"strings"
	"unicode/utf8"
)

const (
	width  = 880
	margin = 24

	ink     = "#1f2328"
	faint   = "#59636e"
	grid    = "#e3e7ec"
	paper   = "#ffffff"
	edge    = "#d1d9e0"
	fonts   = "system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif"
	small   = 12.0
	regular = 13.0
	large   = 17.0
)

// canvas collects the elements of a drawing.
type canvas struct {
	body   strings.Builder
	height float64
}

func (c *canvas) add(format string, args ...any) { fmt.Fprintf(&c.body, format+"\n", args...) }

type anchor string

const (
	left   anchor = "start"
	middle anchor = "middle"
	right  anchor = "end"
)

func (c *canvas) text(x, y, size float64, at anchor, colour string, bold bool, text string) {
	weight := ""
	if bold {
		weight = ` font-weight="600"`
	}
	c.add(`<text x="%s" y="%s" font-size="%s" text-anchor="%s" fill="%s"%s>%s</text>`,
		px(x), px(y), px(size), at, colour, weight, escape(text))
}

func (c *canvas) line(x1, y1, x2, y2 float64, colour string) {
	c.add(`<line x1="%s" y1="%s" x2="%s" y2="%s" stroke="%s"/>`, px(x1), px(y1), px(x2), px(y2), colour)
}

// heading writes the title and what stands below it, and returns where they end.
func (c *canvas) heading(title, subtitle string) (bottom float64) {
	c.text(margin, margin+16, large, left, ink, true, title)
	bottom = margin + 16
	for _, line := range wrap(subtitle, regular, width-2*margin) {
		bottom += 20
		c.text(margin, bottom, regular, left, faint, false, line)
	}
	return bottom
}

// bytes returns the drawing.
func (c *canvas) bytes(label string) []byte {
	return fmt.Appendf(nil, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %s" width="%d" height="%s" role="img" aria-label="%s" font-family="%s">
<rect x="0.5" y="0.5" width="%d" height="%s" rx="8" fill="%s" stroke="%s"/>
%s</svg>
`, width, px(c.height), width, px(c.height), escape(label), fonts, width-1, px(c.height-1), paper, edge, c.body.String())
}

// px formats a length without needless digits.
func px(x float64) string { return fmt.Sprintf("%g", math.Round(x*10)/10) }

var escaper = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;")

func escape(text string) string { return escaper.Replace(text) }

// breadth is how wide a text is at most, give or take: fonts differ.
func breadth(text string, size float64) float64 {
	return 0.58 * size * float64(utf8.RuneCountInString(text))
}

// wrap breaks a text into lines that fit.
func wrap(text string, size, room float64) (lines []string) {
	line := ""
	for word := range strings.FieldsSeq(text) {
		longer := strings.TrimSpace(line + " " + word)
		if line != "" && breadth(longer, size) > room {
			lines = append(lines, line)
			longer = word
		}
		line = longer
	}
	if line != "" {
		lines = append(lines, line)
	}
	return lines
}

// ticks returns round numbers from at most low to at least high, about n of them.
func ticks(low, high float64, n int) []float64 {
	if high <= low {
		high = low + 1
	}
	step := niceStep((high - low) / float64(n))
	var at []float64
	for i := math.Floor(low / step); ; i++ {
		at = append(at, i*step)
		if i*step >= high-step*1e-9 {
			return at
		}
	}
}

// niceStep returns the least of 1, 2, 2.5, 5 times a power of ten that is not less.
func niceStep(least float64) float64 {
	power := math.Pow(10, math.Floor(math.Log10(least)))
	for _, factor := range []float64{1, 2, 2.5, 5} {
		if factor*power >= least*(1-1e-9) {
			return factor * power
		}
	}
	return 10 * power
}
